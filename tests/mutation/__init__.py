"""Deliberate faults, put one at a time into a copy of the tree: which would tests notice?"""
