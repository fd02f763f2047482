"""An app's reply, taken apart into what the protocol sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._drive import log
from secure.aggregation._flower_wire import SCHEMA_KEY
from secure.aggregation._payload import Layout, examples_and_metrics
from secure.errors import MissingExtraError, SecureError
from secure.flower._arrays import only_arrays
from secure.flower._frame import AppError
from secure.flower._tensors import by_name, difference, flatten, shapes_of

try:
    from flwr.app import MetricRecord, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None


@dataclass(frozen=True)
class Base:
    """What the reply refers to.

    Attributes:
        kind: `train` or `evaluate`.
        arrays: The arrays that were received, where the reply's difference to them is summed.
    """

    kind: str
    arrays: dict[str, NDArray] | None

    def fits(self, layout: Layout) -> bool:
        """Tell whether a layout is one of a reply to this."""
        if self.kind == "evaluate":
            return not layout.arrays
        return self.arrays is None or layout.arrays == shapes_of(self.arrays)


@dataclass(frozen=True)
class Reply:
    """What an app answered.

    Attributes:
        layout: What the vector holds.
        vector: The update; None where there is none that fits.
        weight: Number of examples.
        metrics: Metrics by name.
        why: Why there is no vector; for this machine's log.
    """

    layout: Layout
    vector: NDArray[np.floating] | None
    weight: float
    metrics: dict[str, float]
    why: str = "the app failed"


def base_of(content: RecordDict, kind: str, update: str) -> Base:
    """Return what the answer to a message refers to.

    Raises:
        SecureError: The message holds no model.
    """
    if kind == "evaluate" or update == "delta":
        return Base(kind, None)
    arrays = only_arrays(content, "a train message")
    shapes_of(arrays)
    return Base(kind, arrays)


def metric_record(reply: RecordDict) -> MetricRecord:
    """Return the one MetricRecord of a reply.

    Raises:
        AppError: The reply holds another number of them.
    """
    records = list(reply.metric_records.values())
    if len(records) != 1:
        raise AppError(f"a reply holds one MetricRecord, got {len(records)}")
    return records[0]


def reply_of(reply: RecordDict, base: Base, weighted_by_key: str) -> Reply:
    """Take a reply apart.

    Raises:
        SecureError: The reply says so little that its layout isn't known.
    """
    weight, metrics, lists = examples_and_metrics(metric_record(reply), weighted_by_key)
    for name in lists:
        log.warning("metric %r is a list and is not sent; reply with its mean", name)
    schemas = {
        str(config[SCHEMA_KEY]) for config in reply.config_records.values() if SCHEMA_KEY in config
    }
    if len(schemas) > 1:
        raise AppError(f"a reply holds one {SCHEMA_KEY}, got {len(schemas)}")
    names, schema = tuple(sorted(metrics)), "".join(schemas)
    if base.kind == "evaluate":
        return Reply(Layout((), names, schema), np.empty(0, np.float32), weight, metrics)
    if base.arrays is None:
        vector, shapes = flatten(by_name(only_arrays(reply, "a train reply")))
        return Reply(Layout(shapes, names, schema), vector, weight, metrics)
    layout = Layout(shapes_of(base.arrays), names, schema)
    try:
        vector, _ = flatten(difference(only_arrays(reply, "a train reply"), base.arrays))
    except SecureError as error:
        return Reply(layout, None, weight, metrics, str(error))
    return Reply(layout, vector, weight, metrics)
