"""Flower's entry to a client."""

from fedvlm.federation.client_app import app

__all__ = ["app"]
