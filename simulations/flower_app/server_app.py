"""Flower's entry to the server."""

from fedvlm.federation.server_app import app

__all__ = ["app"]
