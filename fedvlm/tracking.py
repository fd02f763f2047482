"""Rounds as they come, to TensorBoard, MLflow or Weights & Biases, where somebody asks for it.

    fedvlm simulate --track tensorboard:runs/board
    fedvlm deploy run DIR --track mlflow:https://tracker.example.org

What is sent is what the server knows of a round anyway, and what `result.json` holds. Each of the
three is imported only when it is named, and none is needed.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from fedvlm.errors import ConfigError

log = logging.getLogger("fedvlm")

Settings = Mapping[str, Any]
TRACK_HELP = "send each round to tensorboard:FOLDER, mlflow:URI or wandb:PROJECT"


class Tracker(Protocol):
    """Takes a run's numbers by round."""

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a round, counted from 0 (before training)."""
        ...

    def end(self) -> None:
        """Write what is left; nothing comes after it."""
        ...


class TensorBoard:
    """Writes event files into a folder.

    Args:
        place: The folder; `runs` where empty.
        settings: The run's configuration.
    """

    def __init__(self, place: str, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(place or "runs")
        text = "\n".join(f"    {key} = {value!r}" for key, value in settings.items())
        self._writer.add_text("config", text)

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Write the scalars of a round."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, number)
        self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """Starts a run of MLflow.

    Args:
        place: Its tracking URI, such as a server's address; MLflow's own default where empty.
        settings: The run's configuration, kept as parameters.
    """

    def __init__(self, place: str, settings: Settings) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow: Any = mlflow
        if place:
            self._mlflow.set_tracking_uri(place)
        self._mlflow.set_experiment("fedvlm")
        self._mlflow.start_run()
        self._mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a round."""
        self._mlflow.log_metrics(dict(metrics), step=number)

    def end(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """Starts a run of Weights & Biases.

    Args:
        place: Its project; `fedvlm` where empty.
        settings: The run's configuration.
    """

    def __init__(self, place: str, settings: Settings) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(project=place or "fedvlm", config=dict(settings))

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a round."""
        self._run.log(dict(metrics), step=number)

    def end(self) -> None:
        """End the run."""
        self._run.finish()


_MADE: dict[str, tuple[Callable[[str, Settings], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


def open_tracker(asked: str, settings: Settings) -> Tracker:
    """Return the tracker that is asked for.

    Args:
        asked: `tensorboard:FOLDER`, `mlflow:URI` or `wandb:PROJECT`; what follows the colon may
            be left out.
        settings: The run's configuration.

    Raises:
        ConfigError: There is no such tracker, it isn't installed, or it can't be reached.
    """
    name, _, place = asked.partition(":")
    if name not in _MADE:
        raise ConfigError(
            f"--track takes {', '.join(_MADE)}, with a place behind a colon; got {asked!r}"
        )
    make, package = _MADE[name]
    try:
        return make(place, settings)
    except ImportError as error:
        raise ConfigError(f"{package} isn't installed; pip install {package}") from error
    except Exception as error:  # each of the three has errors of its own
        raise ConfigError(f"--track {asked}: {type(error).__name__}: {error}") from error


def numbers_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return what of a round's entry is a finite number; the round itself is its step."""
    return {
        key: float(value)
        for key, value in entry.items()
        if key != "round"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


@contextmanager
def tracked(asked: list[str], settings: Settings) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what takes each round's entry and hands it to all the trackers that are asked for.

    A tracker that fails on the way is left out from then on, and said so: no run ends of it.

    Args:
        asked: As `open_tracker` takes them; none tracks nothing.
        settings: The run's configuration.

    Raises:
        ConfigError: As `open_tracker`, before anything is computed.
    """
    open_: dict[str, Tracker] = {}
    try:
        for each in asked:
            open_[each] = open_tracker(each, settings)

        def take(entry: dict[str, Any]) -> None:
            for name in list(open_):
                _guarded(open_, name, lambda t: t.log(entry["round"], numbers_of(entry)))

        yield take
    finally:
        for name in list(open_):
            _guarded(open_, name, lambda tracker: tracker.end())


def _guarded(trackers: dict[str, Tracker], name: str, work: Callable[[Tracker], None]) -> None:
    try:
        work(trackers[name])
    except Exception as error:
        del trackers[name]
        log.warning("--track %s failed, and the run goes on without it: %s", name, error)
