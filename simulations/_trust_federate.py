"""A federation of the trust grid: resumed where it stopped, and scored on the test part alone."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from fedvlm.config import Config
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import ClientFn
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import Task, standing_in
from fedvlm.training import Evaluator


@dataclass(frozen=True)
class _OnTest(RetrievalTask):
    """The server's task, whose rounds are scored on the test part alone: the audit does the rest.

    No score steers a round, so that the adapter is the one that it would have been.
    """

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates the model on the test part."""
        return Evaluator(self.inputs or self.pairs, {"test": self.splits.test}, None)


def _on_test(task: Task) -> Task:
    if not isinstance(task, RetrievalTask):
        raise ConfigError("the grid's federations train dual encoders")
    return _OnTest(**{one.name: getattr(task, one.name) for one in fields(RetrievalTask)})


def federate(config: Config, folder: Path, client: ClientFn = app) -> None:
    """Run a federation, or go on with it; a finished one is left as it is.

    Args:
        config: What to run.
        folder: Gets its checkpoint and result.
        client: What the nodes run.
    """
    if (folder / "result.json").exists():
        return
    with standing_in(config, _on_test):
        simulate(config, out=folder, resume=(folder / "checkpoint.npz").exists(), client=client)
