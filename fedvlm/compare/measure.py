"""What is measured of a cell, stage by stage: the run, its utility, its leaks and its trust."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.compare.cells import CellFolder
from fedvlm.compare.spec import Effort
from fedvlm.compare.timed import TimedClient, median_seconds
from fedvlm.config import Config, config_from
from fedvlm.federation.result import Result
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.simulation import simulate
from fedvlm.federation.task import Progress, load_task
from fedvlm.leakage.audit_run import audit_run, claim_of
from fedvlm.leakage.canary_audit import audit_canaries
from fedvlm.models import load_model
from fedvlm.trained import load_trained
from fedvlm.training.evaluation import Evaluator, mean_interval
from fedvlm.trust.audit import PRIMARY, columns_from, contexts_of, measures_of, read_measures
from fedvlm.trust.context import Context, Sizes
from fedvlm.trust.contrasts import cluster_means, paired_differences, t_interval
from fedvlm.trust.readings import Reading

Told = dict[str, Any]


def federate(cell: CellFolder, config: Config, progress: Progress) -> Result:
    """Run a cell's federation, go on with it, or read it if it is finished."""
    if (cell.run / "result.json").exists():
        return Result.load(cell.run)
    resume = (cell.run / "checkpoint.npz").exists()
    clock = TimedClient()
    result = simulate(config, out=cell.run, resume=resume, progress=progress, client=clock)
    clock.save(cell.run)
    return result


def costs(folder: Path) -> Told:
    """Read what a round cost off a finished run: bytes and seconds, as means over its rounds."""
    rounds = [one for one in Result.load(folder).rounds if one["round"]]
    return {
        "upload_bytes": statistics.fmean(one["upload_bytes_per_client"] for one in rounds),
        "server_s": statistics.fmean(map(_server_seconds, rounds)),
        "client_s": median_seconds(folder),
    }


def _server_seconds(entry: Told) -> float:
    """Return the server's own seconds: waiting for clients' further trips is none of them."""
    if entry.get("trips"):
        return sum(trip["server_seconds"] for trip in entry["trips"])
    return float(entry["server_seconds"])


def _chances(
    folder: Path, progress: Progress
) -> tuple[RetrievalTask, dict[str, NDArray], dict[str, NDArray]] | None:
    """Return a run's task and one of 100 image by image, of its model and of the untouched one."""
    trained = load_trained(folder)
    task = load_task(trained.config, progress)
    if not isinstance(task, RetrievalTask) or not len(task.data):
        return None
    # On pixels' own inputs: a task may hold the features of a tower that its adapter leaves alone.
    evaluator = Evaluator(task.pairs, task.parts, None)
    zero = evaluator.chances(load_model(trained.config.model.name).vlm)
    return task, evaluator.chances(trained.model.vlm), zero  # pyright: ignore


def utility(folder: Path, progress: Progress) -> Told:
    """Measure accuracy, worst domain, unseen domain and what was forgotten, with intervals.

    Returns:
        The columns' values, and under `by_concept` the test part's means of the run and of the
        untouched model, which gains are paired by.
    """
    measured = _chances(folder, progress)
    if measured is None:
        return _told_utility(Result.load(folder))
    task, run, zero = measured
    found: Told = {}
    for key, part in (("accuracy", "test"), ("unseen", "ood")):
        if part in run:
            shown = task.pairs.groups[task.parts[part]]
            low, high = mean_interval(run[part], shown)
            found[key] = {"value": float(run[part].mean()), "low": low, "high": high}
    found["worst_domain"] = _worst(task, run["test"])
    if "retention" in run:
        concepts = task.data.concepts[task.parts["retention"]]
        lost = paired_differences(
            cluster_means(zero["retention"], concepts), cluster_means(run["retention"], concepts)
        )
        low, high = t_interval(lost)
        found["forgotten"] = {"value": float(lost.mean())}
        if np.isfinite(low + high):
            found["forgotten"] |= {"low": low, "high": high}
    concepts = task.data.concepts[task.parts["test"]]
    found["by_concept"] = {
        name: {str(k): round(v, 6) for k, v in cluster_means(of["test"], concepts).items()}
        for name, of in (("run", run), ("zero_shot", zero))
    }
    return found


def _worst(task: RetrievalTask, chances: NDArray[np.float64]) -> Told:
    rows = task.parts["test"]
    domains = task.data.domains[rows]
    means = {d: float(chances[domains == d].mean()) for d in np.unique(domains).tolist()}
    worst = min(means, key=lambda d: means[d])
    held = domains == worst
    low, high = mean_interval(chances[held], task.pairs.groups[rows[held]])
    told = {"value": means[worst], "low": low, "high": high}
    return told | {"note": str(task.data.domain_names[worst])}


def _told_utility(result: Result) -> Told:
    """Read what a run tells by itself, where its model isn't scored by images' own captions."""
    last, metric = result.rounds[-1], result.metric
    found: Told = {}
    for key, part in (("accuracy", "test"), ("unseen", "ood")):
        name = f"{part}_{metric}"
        if last.get(name) is not None:
            told = {"value": last[name], "low": last.get(f"{name}_low")}
            found[key] = told | {"high": last.get(f"{name}_high")}
    if "worst_domain" in last:
        found["worst_domain"] = {"value": last["worst_domain"]}
    before, after = (result.summary.get(f"retention_{name}") for name in ("zero_shot", "federated"))
    if before is not None and after is not None:
        found["forgotten"] = {"value": before - after}
    return found


def attack(folder: Path, effort: Effort, progress: Progress) -> Told:
    """Audit a run from every vantage: the best attack of each, and what the checks say."""
    found = audit_run(folder, per_client=effort.per_client, rebuild=False, progress=progress)
    best = {one.vantage: one.to_dict() for one in found.best}
    lower = {
        vantage: max((one.epsilon_lower or 0.0) for one in found.results if one.vantage == vantage)
        for vantage in best
    }
    return {
        "best": best,
        "epsilon_lower": lower,
        "absent": found.absent,
        "refuted": found.refuted,
        "claim": found.claim and found.claim.to_dict(),
    }


def twin_of(config: Config, effort: Effort) -> Config:
    """Return the same run with canaries that are clients, for claims about clients."""
    return config_from({"canaries": effort.canaries}, config)


def canaries(cell: CellFolder, config: Config, effort: Effort, progress: Progress) -> Told:
    """Run the twin of a cell with canary clients, and audit it by them alone."""
    twin = CellFolder(cell.path / f"canaries-{effort.canaries}")
    wanted = twin_of(config, effort)
    result = federate(twin, wanted, progress)
    size = load_task(wanted, progress).view.size
    return audit_canaries(twin.run, wanted, size, claim_of(result), 0.05).to_dict()


def trust(folder: Path, effort: Effort, known: dict[Any, Any], progress: Progress) -> Told:
    """Read the trust audit's primary measures off a run beside zero-shot.

    Args:
        folder: The run's.
        effort: How many images are altered.
        known: Readings of the untouched model by seed, filled in as they are made.
        progress: Called with (task, done, total).
    """
    sizes = Sizes(designers=effort.designers, altered=effort.altered)
    before, after, identity = contexts_of(folder, sizes, progress)
    key = (identity["model"], identity["data"], before.seed.value, len(before.splits.test))
    if key not in known:
        known[key] = _primary(before)
    wanted = {k: v for k, v in measures_of(after, None, {}).items() if k in PRIMARY.values()}
    columns = columns_from(wanted, known[key], _primary(after), after.rng("changes"))
    return {column.name: column.to_dict() for column in columns}


def _primary(context: Context) -> dict[str, Reading | str]:
    measures = measures_of(context, None, {})
    return read_measures({name: measures[name] for name in measures if name in PRIMARY.values()})
