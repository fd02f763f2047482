"""Flower ServerApp and ClientApp, the in-process grid, and a federation from start to result.

Names are imported when they are first used: a client's later trips of a protocol need neither
torch nor a model, and over SuperLink each trip is a process of its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvlm.federation.floor import Floor, RefusedError, Terms
    from fedvlm.federation.grid import InProcessGrid
    from fedvlm.federation.node import Node
    from fedvlm.federation.result import Result
    from fedvlm.federation.run import run_federation
    from fedvlm.federation.simulation import simulate
    from fedvlm.federation.task import Task, load_task

_WHERE = {
    "Floor": "floor",
    "InProcessGrid": "grid",
    "Node": "node",
    "RefusedError": "floor",
    "Result": "result",
    "Task": "task",
    "Terms": "floor",
    "load_task": "task",
    "run_federation": "run",
    "simulate": "simulation",
}

__all__ = [
    "Floor",
    "InProcessGrid",
    "Node",
    "RefusedError",
    "Result",
    "Task",
    "Terms",
    "load_task",
    "run_federation",
    "simulate",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"fedvlm.federation.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fedvlm.federation' has no attribute {name!r}")
