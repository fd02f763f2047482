"""A node's own score of the adapter: on what it holds out, told in a sum, kept on its disk.

What leaves is an answer like any other: it counts against the floor's rounds, and the protection
that sums updates sums it too. Four numbers are enough for one accuracy with its interval over all
nodes: how many pairs, the mean of right answers, how many captions they were among, and how much
the pairs of one image hang together.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict

from fedvlm.config import Config
from fedvlm.federation.exchange import Exchange, read_round
from fedvlm.federation.floor import RefusedError
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.records import EXAMPLES
from fedvlm.federation.scores import AMONG, FIRST, SCORES, TOGETHER
from fedvlm.federation.task import Task
from fedvlm.files import one_at_a_time, write_durably
from fedvlm.training import Evaluator
from fedvlm.training.evaluation import rate_interval

log = logging.getLogger("fedvlm")

FILE = "scores.json"
_LEAST = 2
_LAST = 1_000


def answer_score(message: Message, context: Context, node: Node, config: Config) -> Message:
    """Score the adapter that came on what the node holds out, and tell it.

    Args:
        message: The adapter as it would come in the round after the one that is scored.
        context: Flower's, for its state.
        node: Whose data it is; its floor has been met.
        config: The run's configuration.

    Returns:
        The score, with the number of pairs that it is of; nothing of single pairs.

    Raises:
        RefusedError: The run's own configuration asks for no scores in this round.
        IntegrityError: The adapter is of another schema, or not finite.
    """
    torch.set_num_threads(1)
    number, sent, settings = read_round(message, "score")
    if not config.scores_after(number - 1):
        raise RefusedError("terms", f"the run asks for no scores after round {number - 1}")
    task = node.task(config)
    Exchange(task, node, context, number).receive(sent, settings)
    session = f"{context.run_id}/{message.metadata.message_id}"
    NodeLedger(node, context.state).answer(config, number - 1, session)
    found = score(task)
    if found is None:  # it has agreed to the sum, and the others count on it: it weighs nothing
        log.warning("this node holds out too few pairs to score: zeros take their place")
        told = {EXAMPLES: 0, **dict.fromkeys(SCORES, 0.0)}
    else:
        keep(node, config, number - 1, found)
        told = {EXAMPLES: int(found["pairs"]), **{name: found[name] for name in SCORES}}
    return Message(RecordDict({"metrics": MetricRecord({**told})}), reply_to=message)


def score(task: Task) -> dict[str, float] | None:
    """Score a task's adapter, as it stands, on what its node holds out.

    Returns:
        Pairs, the three numbers of `SCORES`, and the ends of a 95 % interval, `low` and `high`;
        None where it holds out fewer than two pairs, of which nothing follows.
    """
    part = task.held
    if part is None or len(part) < _LEAST:
        return None
    told = Evaluator(task.pairs, {"held": part}, None)(task.model.vlm)
    sizes = np.unique(task.pairs.groups[part], return_counts=True)[1].astype(np.float64)
    together = float((sizes**2).sum() / sizes.sum())
    first = told["held_one_of_100"]
    low, high = rate_interval(first, len(part) / together)
    return {
        "pairs": len(part),
        FIRST: first,
        AMONG: told["held_candidates"],
        TOGETHER: together,
        "low": low,
        "high": high,
    }


def keep(node: Node, config: Config, number: int, found: Mapping[str, float]) -> None:
    """Write a node's own score into its folder, where it has one: for its owner alone."""
    if node.state is None:
        return
    path = node.state / FILE
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    run = hashlib.sha256(text.encode()).hexdigest()[:16]
    with one_at_a_time(path):
        kept: list[dict[str, Any]] = []
        if path.exists():
            try:
                kept = list(json.loads(path.read_text(encoding="utf-8")))
            except ValueError:
                log.warning("%s was broken, and is begun anew", path)
        kept = [each for each in kept if (each.get("run"), each.get("round")) != (run, number)]
        kept.append({"run": run, "round": number, **found})
        write_durably(path, json.dumps(kept[-_LAST:], indent=1))
