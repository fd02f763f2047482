"""Flower ServerApp and ClientApp, the in-process grid, and a federation from start to result."""

from fedvlm.federation.grid import InProcessGrid
from fedvlm.federation.result import Result
from fedvlm.federation.run import run_federation
from fedvlm.federation.simulate import simulate
from fedvlm.federation.task import Task, load_task

__all__ = ["InProcessGrid", "Result", "Task", "load_task", "run_federation", "simulate"]
