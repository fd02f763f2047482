"""Scores of a trained model, on its run's data or on a folder of one's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedvlm.data import load_folder
from fedvlm.data.emoji import Progress, quiet
from fedvlm.errors import ConfigError
from fedvlm.federation.task import load_task
from fedvlm.trained.model import TrainedModel
from fedvlm.training import Evaluator, encode_pairs


def evaluate(
    trained: TrainedModel, data: str | Path | None = None, progress: Progress = quiet
) -> dict[str, float]:
    """Score a trained model.

    Args:
        trained: The model of a run.
        data: Folder with images and captions, all of it the part `data`; None for the run's own
            data, split as the run split it.
        progress: Called with (task, done, total).

    Returns:
        Metrics by name as in a result's rounds, all fractions, and for a folder `data_pairs` and
        `data_captions`: how many images were asked, and among how many captions.

    Raises:
        ConfigError: The run's data has changed since.
        DataError: Data is missing or broken.
    """
    model = trained.model
    if data is None:
        # Wherever the run was computed: on what is here.
        here = replace(trained.config.training, device="cpu", dtype="float32")
        task = load_task(replace(trained.config, training=here), progress)
        before = trained.result.data.get("fingerprint")
        if before is not None and before != task.data.fingerprint:
            raise ConfigError(
                f"{trained.config.data.source} has changed since the run, so its parts would not "
                "be the run's; name the folder with --data to score all of it"
            )
        return replace(task, model=model).evaluator(model.vlm)
    own = load_folder(data)
    everything = np.arange(len(own))
    pairs = encode_pairs(own, model, progress, everything)
    topics = None
    if len(own.topic_names) > 1:
        rows, first = np.unique(pairs.caption_of, return_index=True)
        topics = (rows, pairs.topics[first])
    scores = Evaluator(pairs, {"data": everything}, topics)(model.vlm)
    counts = {"data_pairs": len(own), "data_captions": len(set(own.captions))}
    return {**scores, **counts}
