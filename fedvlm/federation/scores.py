"""The server's half of the nodes' scores: one accuracy with its interval, of a sum."""

import math
from collections.abc import Iterable, Mapping

from flwr.app import Message, MetricRecord, RecordDict

from fedvlm.federation.records import EXAMPLES, read_metrics

FIRST, AMONG, TOGETHER = "one-of-100", "candidates", "pairs-an-image"
SCORES = (FIRST, AMONG, TOGETHER)
"""Names of a score's metrics: one of 100, in [0, 1]; among how many captions that is; and Σm²/Σm
over the images' numbers of pairs m."""
_LEAST = 2


def mean_of(replies: Iterable[Message]) -> tuple[MetricRecord, int]:
    """Return the mean of scores that came in clear, weighted by pairs, and of how many nodes.

    A reply that isn't a score is left out, whatever it holds.
    """
    read = [read_metrics(reply, (EXAMPLES, *SCORES)) for reply in replies]
    good = [each for each in read if each is not None and _sound(each)]
    total = sum(each[EXAMPLES] for each in good)
    told = {n: sum(e[EXAMPLES] * e[n] for e in good) / total for n in SCORES} if good else {}
    return MetricRecord({**told, EXAMPLES: total}), len(good)


def whole_record(records: list[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """Return the one record of a sum as it is: its weight included, which Flower's own leaves out.

    Args:
        records: One, which holds the means.
        weighting_metric_name: Not looked at; Flower gives it.
    """
    return MetricRecord({**next(iter(records[0].metric_records.values()))})


whole_record.aggregates_mean_only = True  # pyright: ignore  what secure summing asks of such


def _sound(told: Mapping[str, float]) -> bool:
    pairs = told[EXAMPLES]
    return (
        pairs >= _LEAST
        and 0 <= told[FIRST] <= 1
        and 1 <= told[TOGETHER] <= pairs
        and 1 <= told[AMONG] <= pairs
    )


def one_score(metrics: Mapping[str, object]) -> dict[str, float]:
    """Make one accuracy with its interval of the nodes' summed scores.

    Args:
        metrics: Means weighted by pairs, and the sum of the pairs.

    Returns:
        `nodes_one_of_100`, `nodes_one_of_100_low`, `nodes_one_of_100_high` (95 %, over images),
        `nodes_candidates` and `nodes_pairs`; empty where the means aren't what such a sum gives.
    """
    numbers = [metrics.get(name) for name in (EXAMPLES, *SCORES)]
    from fedvlm.training.evaluation import rate_interval

    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return {}
    pairs, first, among, together = (float(n) for n in numbers)  # pyright: ignore
    # A secure sum is rounded: it may pass the ends of what a mean can be by as much.
    first, together = min(max(first, 0.0), 1.0), max(together, 1.0)
    if pairs < _LEAST:
        return {}
    low, high = rate_interval(first, pairs / together)
    return {
        "nodes_one_of_100": first,
        "nodes_one_of_100_low": low,
        "nodes_one_of_100_high": high,
        "nodes_candidates": among,
        "nodes_pairs": pairs,
    }
