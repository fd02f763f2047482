"""The lines that a comparison is read against: zero-shot, public pairs alone, central training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvlm.compare.cells import CellFolder
from fedvlm.compare.spec import Spec
from fedvlm.config import Config, config_from
from fedvlm.config.adapter import HEADS
from fedvlm.federation.control_lines import control_lines
from fedvlm.federation.references import reference_lines
from fedvlm.federation.result import versions
from fedvlm.federation.task import Progress, load_task

_TOLD = ("zero_shot", "control", "local_only", "central")


def reference_config(spec: Spec, seed: int) -> Config:
    """Return the run whose references stand beside the rows: the first adapter that is trained."""
    adapter = next((each for each in spec.adapters if each not in HEADS), "lora")
    config = spec.config("none", adapter, seed)
    most = spec.effort.reference_epochs
    if most is None:
        return config
    return config_from({"reference_epochs": min(most, config.training.reference_epochs)}, config)


def references(
    spec: Spec,
    seed: int,
    out: Path,
    inputs: Mapping[str, str],
    progress: Progress,
    measures: bool = True,
) -> dict[str, float]:
    """Return `zero_shot`, `control`, `local_only` and `central` of a seed, as fractions.

    Nothing where they aren't kept and nothing is measured.
    """
    config = reference_config(spec, seed)
    cell = CellFolder.of(out, f"references-{seed}", config, inputs, versions())

    def measure() -> dict[str, Any]:
        task = load_task(config, progress)
        lines = control_lines(task) if task.kind == "retrieval" else {}
        lines |= reference_lines(task, progress)
        return {key: lines[key] for key in _TOLD if key in lines}

    epochs = config.training.reference_epochs
    if not measures and not cell.has("lines", epochs=epochs):
        return {}
    return cell.kept("lines", measure, epochs=epochs)
