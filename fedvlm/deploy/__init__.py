"""A federation between owners: folders for the parties, checks before a run, and the run itself.

`fedvlm deploy init | join | check | run`. Each party gets a folder that holds its own secrets and
nobody else's; the processes in it are Flower's SuperLink and SuperNodes over TLS.
"""
