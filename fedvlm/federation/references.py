"""The lines to read a federation against: local-only and central training, computed once."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from fedvlm.config import Config
from fedvlm.federation.task import Progress, Task, device_of, load_task
from fedvlm.files import cache_dir, one_at_a_time, write_text
from fedvlm.models.placement import side_by_side
from fedvlm.training import Evaluator, train_adapter

_VERSION = 2  # raise it when training changes: references are then computed anew


def _key(task: Task) -> str:
    """Return a hash of all that the references depend on."""
    config = task.config
    parts = [
        _VERSION,
        task.data.fingerprint,
        task.splits.fingerprint,
        task.view.schema,
        hashlib.sha256(task.initial.tobytes()).hexdigest(),
        task.config.model.name,
        config.training.seed,
        config.training.reference_epochs,
        config.training.batch_size,
        config.training.reference_learning_rate,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _train(config: Config, client: int | None) -> dict[str, float]:
    """Train one adapter on a client's pairs, or on everybody's, and score it."""
    torch.set_num_threads(1)
    task = load_task(config)
    task.reset()
    clients = task.splits.clients
    indices = np.concatenate(clients) if client is None else clients[client]
    name = "central" if client is None else f"local-{client}"
    schedule = replace(
        config.training,
        rounds=config.training.reference_epochs,
        local_epochs=1,
        learning_rate=config.training.reference_learning_rate,
        proximal_mu=0.0,
    )
    for epoch in range(1, config.training.reference_epochs + 1):
        train_adapter(
            task.model.vlm,
            task.view,
            task.pairs,
            indices,
            schedule.local_settings(epoch),
            task.seed.numpy("reference", name, epoch),
        )
    parts = {"test": task.splits.test, "ood": task.splits.ood}
    return Evaluator(task.pairs, parts, None)(task.model.vlm)


def reference_lines(task: Task, progress: Progress) -> dict[str, float]:
    """Return the references for a task, from the cache where it has them.

    Args:
        task: The federation's task.
        progress: Called with ("references", done, total).

    Returns:
        `local_only` (mean over clients), `local_only_best`, `central`, `ood_local_only`,
        `ood_central`: one of 100, fractions.
    """
    path = cache_dir() / "references" / f"{_key(task)}.json"
    with one_at_a_time(path):
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            pass  # not computed yet, or broken: compute
        lines = _compute(task.config, progress)
        write_text(path, json.dumps(lines) + "\n")
        return lines


def _compute(config: Config, progress: Progress) -> dict[str, float]:
    # The central run takes as long as all the others together: start with it.
    order: list[int | None] = [None, *range(config.data.clients)]
    found = []
    workers = side_by_side(config.server.workers, device_of(config))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for metrics in pool.map(lambda client: _train(config, client), order):
            found.append(metrics)
            progress("references", len(found), len(order))
    central, local = found[0], found[1:]
    lines = {
        "local_only": float(np.mean([one["test_one_of_100"] for one in local])),
        "local_only_best": float(max(one["test_one_of_100"] for one in local)),
        "central": central["test_one_of_100"],
    }
    if "ood_one_of_100" in central:
        lines["ood_local_only"] = float(np.mean([one["ood_one_of_100"] for one in local]))
        lines["ood_central"] = central["ood_one_of_100"]
    return lines
