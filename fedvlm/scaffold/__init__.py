"""A project of the user's own that runs at once: `fedvlm init DIR`."""

from fedvlm.scaffold.project import init_project

__all__ = ["init_project"]
