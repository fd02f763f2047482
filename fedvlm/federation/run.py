"""A federation from start to result, on whatever grid it is given."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvlm.canaries import Canaries
from fedvlm.config import Config
from fedvlm.config.rules import keeps_personal, sends_all
from fedvlm.errors import DataError, DropoutError, ProtocolError
from fedvlm.federation.agreement import facts_of
from fedvlm.federation.best import BEST, best_of, is_best
from fedvlm.federation.checkpoint import (
    Checkpoint,
    input_hashes,
    optimizer_state,
    restore_optimizer,
    saved_result,
)
from fedvlm.federation.installing import install, save_state
from fedvlm.federation.mitigated import require_carried
from fedvlm.federation.no_data import require_without_data
from fedvlm.federation.protection import protected
from fedvlm.federation.records import VECTOR
from fedvlm.federation.references import reference_lines
from fedvlm.federation.result import Result, summary_of, versions
from fedvlm.federation.roll import Roll
from fedvlm.federation.ruled import RuledStrategy
from fedvlm.federation.rules import rule_of
from fedvlm.federation.strategy import MIN_CLIENTS, FederationStrategy, inner_strategy
from fedvlm.federation.task import Progress, Task, device_of, load_task, quiet
from fedvlm.federation.transcript import Transcript

if TYPE_CHECKING:
    from secure.aggregation import Roster

_OF_A_RUN = ("result.json", "audit.json", "audit-roc.png", "trust.json", "trust.md", "report.html")

OnRound = Callable[[dict[str, Any]], None]


def _ignore(entry: dict[str, Any]) -> None:
    """Do nothing with a round's entry."""


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Silence Flower for a while; its logger is also that of other runs in this process.

    It logs each step at INFO and its defaults at WARNING; our own progress says it shorter.
    """
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _federate(
    grid: Grid,
    task: Task,
    out: Path | None,
    resume: bool,
    on_round: OnRound,
    roster: "Roster | None",
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any] | None, NDArray[np.float32]]:
    """Run the rounds: history (entry 0 is before training), protection, privacy, last state."""
    config, view = task.config, task.view
    with _quiet_flower():
        inner, rule = inner_strategy(config), rule_of(config, view.layout)
    roll = Roll(
        config.nodes,
        facts=facts_of(task),
        agree_s=max(config.server.round_timeout, config.server.join_timeout),
    )
    private = None
    if config.privacy.dp != "none":  # accounting takes a second to import: only where it is needed
        from fedvlm.federation.noising import private_strategy

        private = private_strategy(inner, task, roll)
    history: list[dict[str, Any]] = []
    vector = rule.start(task.initial)
    inputs = input_hashes(task) if out is not None else {}
    if resume and out is not None:
        checkpoint = Checkpoint.load(out, config, view.schema, inputs)
        history, vector = checkpoint.rounds, checkpoint.vector
        sent = rule.encode(rule.adapter(vector), len(history))
        restore_optimizer(inner, checkpoint.state, sent)
        if private is not None:
            private.restore(checkpoint.state)
        for entry in history:
            on_round(entry)
        more = len(history) <= config.training.rounds
        if more and is_best(history, task.metric, keeps_personal(config)):
            install(task, rule, vector)  # it was the last round's so far
            save_state(task, rule, vector, out / BEST)
    done = max(0, len(history) - 1)
    transcript = None
    if out is not None and config.audit.transcript:
        planted = None
        if config.audit.canaries:
            drawn = Canaries.of_run(config, view.size)
            planted = {"count": config.audit.canaries, "fingerprint": drawn.fingerprint}
        transcript = Transcript(out, config.protection.protect, view.schema, config.nodes, planted)
    protection = protected(private or inner, config, roster)
    strategy = FederationStrategy(protection.strategy, config, view.schema, done, transcript, roll)
    report, outer = protection.round_report, strategy
    if not sends_all(config):
        outer = RuledStrategy(strategy, rule, done, config.server.round_timeout, report)
        report = outer.round_report
    state = vector

    def keep(vector: NDArray[np.float32]) -> None:
        if out is not None:
            state = optimizer_state(inner) | (private.state() if private is not None else {})
            Checkpoint(vector, view.schema, history, config.to_dict(), state, inputs).save(out)

    if private is not None:
        private.on_paid = lambda _: keep(state)  # what is sent may be a part of it

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        number = server_round + done
        if number < len(history):  # a resumed run has this round already
            return None
        nonlocal state
        state = arrays[VECTOR].numpy()
        install(task, rule, state)
        entry: dict[str, Any] = {"round": number}
        if len(task.data):  # a server of a federation between owners has none
            entry |= task.evaluator(task.model.vlm)
        if number:
            entry |= asdict(strategy.costs[number]) | report()
            entry |= private.entry() if private is not None else {}
            entry |= strategy.scores.get(number, {})
            if number in strategy.abandoned and not entry.get("abandoned"):
                entry["abandoned"] = strategy.abandoned[number]
        history.append(entry)
        if out is not None and is_best(history, task.metric, keeps_personal(config)):
            save_state(task, rule, state, out / BEST)
        keep(state)
        on_round(entry)
        return None

    if done < config.training.rounds:
        there = roll.gather(grid, config.nodes, config.server.join_timeout)
        require_nodes(there, config, roll.refused)
        with _quiet_flower():
            outer.start(
                grid,
                ArrayRecord({VECTOR: Array(vector)}),
                timeout=config.server.round_timeout,
                num_rounds=config.training.rounds - done,
                train_config=ConfigRecord(),
                evaluate_fn=evaluate,
            )
        if all(entry.get("abandoned") for entry in history[1:]):
            protection.require_success()
    else:
        install(task, rule, vector)
    described = None if private is None else private.describe()
    return history, protection.describe(), described, state


def check_writable(out: Path) -> None:
    """Refuse a folder that can't be written before anything is computed; nothing is made yet.

    Raises:
        DataError: It, or the nearest folder above it that is there, can't be written.
    """
    there = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "can't be written" if there.is_dir() else "is a file"
        raise DataError(f"can't write {out}: {there} {why}; choose another folder")


def _clear(out: Path) -> None:
    """Take away what an earlier run left in a folder: nothing of it may pass for this one's."""
    for name in (*_OF_A_RUN, "checkpoint.npz"):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"can't write {out / name}: {error.strerror}") from error
    for name in ("adapter", BEST, "transcript"):
        shutil.rmtree(out / name, ignore_errors=True)


def require_nodes(
    there: list[int], config: Config, refused: Mapping[int, str] | None = None
) -> None:
    """Refuse to start a run that the nodes that are there can't finish.

    Args:
        there: Nodes that came and agree.
        config: The federation's configuration.
        refused: Number of a node that doesn't agree → code of the reason.

    Raises:
        DropoutError: Fewer nodes than any round needs.
    """
    if len(there) >= MIN_CLIENTS:
        return
    told = [f"client {n + 1} refuses ({code})" for n, code in sorted((refused or {}).items())]
    raise DropoutError(
        f"{len(there)} of {config.nodes} nodes came within {config.server.join_timeout:g} s and "
        f"agree, and a round needs at least {MIN_CLIENTS}; "
        + (f"{', '.join(told)}: their logs say why; " if told else "")
        + "start the others, or raise join_timeout"
    )


def _described(task: Task) -> dict[str, Any]:
    """Describe the data. Under DP: by public facts alone, for a hash confirms a guess of it."""
    parts = {name: len(part) for name, part in task.parts.items()}
    held = task.splits.clients
    public = {"name": task.data.name, "pairs": len(task.data), "parts": parts}
    public |= {"task": task.kind, "metric": task.metric}
    if task.config.privacy.dp != "none":
        mean = task.config.privacy.mean_pairs or sum(map(len, held)) // max(1, len(held))
        return public | {"mean_pairs": mean}
    return public | {
        "fingerprint": task.data.fingerprint,
        "splits": task.splits.fingerprint,
        "client_pairs": [len(part) for part in held],
        "client_domains": [
            [task.data.domain_names[d] for d in np.unique(task.data.domains[part])] for part in held
        ],
    }


def _with_releases(
    privacy: dict[str, Any] | None, lines: dict[str, float]
) -> dict[str, Any] | None:
    """Name what a result under DP tells that no noise covers."""
    if privacy is None:
        return None
    told = [*lines] if lines else []
    return privacy | {"outside_epsilon": told}


def run_federation(
    grid: Grid,
    config: Config,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = quiet,
    on_round: OnRound = _ignore,
    roster: "Roster | None" = None,
) -> Result:
    """Federate an adapter over the clients behind a grid.

    Args:
        grid: Flower's grid: in process, Ray's, or a SuperLink's.
        config: What to run.
        out: Folder for checkpoint, adapter, transcript and result; None keeps nothing.
        resume: Go on from the checkpoint in `out`.
        progress: Called with (task, done, total) during preparation.
        on_round: Called with each round's entry as soon as it is known.
        roster: The clients' public keys under secure aggregation, where the server has them.

    Returns:
        The result, also written to `out/result.json`.

    Raises:
        ConfigError: The configuration doesn't fit the data, or there is nothing to resume.
        ProtocolError: A round could not be finished.
    """
    start = time.perf_counter()
    require_without_data(config)
    if out is not None:
        check_writable(out)
    device_of(config)  # refused before anything is read
    task = load_task(config, progress)
    require_carried(task)
    task.reset()
    ready = time.perf_counter()
    if out is not None and not resume:
        _clear(out)
    history, protection, privacy, state = _federate(grid, task, out, resume, on_round, roster)
    federated = time.perf_counter()
    failed = [entry["abandoned"] for entry in history[1:] if entry.get("abandoned")]
    if failed and len(failed) == len(history) - 1:
        raise ProtocolError(
            f"no round of {len(failed)} succeeded, so that there is no adapter to save; the last "
            f"was abandoned: {failed[-1]}"
        )
    rule = rule_of(config, task.view.layout)
    kept = saved_result(out, config, history) if resume and out is not None else None
    if kept is not None:  # nothing is computed anew, and what an audit added stays
        install(task, rule, rule.start(task.view.read()))
        return kept
    lines: dict[str, float] = {}
    if config.computes_references and len(task.data):
        lines = reference_lines(task, progress)
        install(task, rule, state)  # a reference may have used this thread's task
    control: dict[str, float] = {}
    if task.kind == "retrieval" and (config.has_head or config.privacy.dp != "none"):
        from fedvlm.federation.control_lines import control_lines

        control = control_lines(task)
        install(task, rule, state)
    referenced = time.perf_counter()
    result = Result(
        summary=summary_of(history, lines, keeps_personal(config), task.metric) | control,
        rounds=history,
        privacy=_with_releases(privacy, lines),
        protection=protection,
        leakage=[],
        config=config.to_dict(),
        versions=versions(),
        seed=config.training.seed,
        data=_described(task),
        adapter={
            "kind": config.adapter.kind,
            "parameters": task.view.size,
            "schema": task.view.schema,
            # The factor that nodes keep to themselves.
            "personal": {"A": "B", "B": "A"}.get(config.server.share),
        },
        seconds={
            "prepare": ready - start,
            "federate": federated - ready,
            "references": referenced - federated,
        },
        best=best_of(history, task.metric, keeps_personal(config)),
    )
    if out is not None:
        save_state(task, rule, state, out / "adapter")
        if result.best.get("adapter") != BEST:  # the last round's is that one
            shutil.rmtree(out / BEST, ignore_errors=True)
        result.save(out)
    install(task, rule, rule.start(task.view.read()))  # base weights as they were
    return result
