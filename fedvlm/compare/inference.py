"""Private inference beside the plaintext: the same images, asked for their best caption."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvlm.compare.cells import CellFolder
from fedvlm.compare.spec import Spec
from fedvlm.compare.values import failed
from fedvlm.config import Config
from fedvlm.errors import DataError
from fedvlm.federation.result import versions
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import Progress, load_task
from fedvlm.inference.agreement import embeddings, encrypted_agreement, smpc_agreement
from fedvlm.models import LoadedModel, load_model
from fedvlm.models.embedded import EmbeddedProcessor
from fedvlm.reporting.comparison import Cell, Column, Grid, Row
from fedvlm.training.evaluation import rate_interval
from secure.smpc import Query, compile
from secure.smpc._cost import NETWORKS

LABELS = 64
_PUBLIC = 128
_COLUMNS = (
    Column("agreement", "same best caption", "fraction", "high", "As in plaintext; 95 %, exact."),
    Column("here_s", "here", "s", "low", "Of one image on this machine, without a network; under "
           "SMPC both parties in one process, in batches."),
    Column("lan_s", "LAN", "s", "low", "Predicted for 1 Gbit/s and 0.5 ms one way."),
    Column("wan_s", "WAN", "s", "low", "Predicted for 100 Mbit/s and 20 ms one way."),
    Column("bytes", "bytes", "bytes", "low", "Of one image, both ways; keys and randomness that "
           "come beforehand are told in the note."),
    Column("learns", "who learns what", "text"),
)  # fmt: skip
Told = dict[str, Any]


def inference_grid(
    spec: Spec,
    out: Path,
    inputs: Mapping[str, str],
    progress: Progress,
    measures: bool = True,
) -> Grid:
    """Return rows {plaintext, SMPC, HE projection}; one that can't be says why.

    Args:
        spec: Whose base model and data; `effort.images` images of the test part are classified
            among 64 captions.
        out: Folder of the comparison.
        inputs: Hashes of data and weights.
        progress: Called with (task, done, total).
        measures: Whether what isn't kept is measured.
    """
    config = spec.base
    folder = CellFolder.of(out, "inference", config, inputs, versions())
    held: dict[str, Any] = {}

    def world() -> Any:
        if "it" not in held:
            held["it"] = World(config, spec.effort.images, progress)
        return held["it"]

    rows = []
    for name, title, measure in (
        ("plaintext", "plaintext", _plaintext),
        ("smpc", "SMPC", _smpc),
        ("he", "HE projection", _he),
    ):

        def measured(measure: Callable[[Any], Told] = measure) -> Told:
            return measure(world())

        sizes = {"images": spec.effort.images, "labels": LABELS}
        try:
            if not measures and not folder.has(name, **sizes):
                raise DataError("not measured yet: the same command goes on")
            found = folder.kept(name, measured, **sizes)
            cells = {k: Cell(**told) for k, told in found.items()}
        except Exception as error:  # of any kind: the other rows go on
            cells = {_COLUMNS[0].key: failed(f"failed: {error}")}
        rows.append(Row(title, cells=cells))
    return Grid(_COLUMNS, tuple(rows))


class World:
    """Images, their captions, and a model that isn't trained."""

    def __init__(self, config: Config, images: int, progress: Progress) -> None:
        task = load_task(config, progress)
        if not isinstance(task, RetrievalTask):
            raise DataError("private inference here is of dual encoders; this model answers")
        if not len(task.splits.test):
            raise DataError("the data has no test part to classify")
        self.loaded: LoadedModel = load_model(config.model.name)
        self.model: Any = self.loaded.vlm.backbone
        rows = task.splits.test[:images]
        spare = task.splits.public if len(task.splits.public) else task.splits.validation
        public = spare[:: max(1, len(spare) // _PUBLIC)][:_PUBLIC]
        source = self.loaded.processor.images(
            task.data, np.unique(np.concatenate([rows, public])), progress
        )
        self.pixels = source(rows)["pixel_values"]
        self.public = source(public)["pixel_values"]
        texts = list(dict.fromkeys(task.data.captions[int(row)] for row in task.splits.test))
        with torch.no_grad():
            found = self.loaded.vlm.encode_text(self.loaded.processor.texts(texts[:LABELS]))
        self.table = found.double()
        self.reference = embeddings(self.model, self.pixels)

    @property
    def prepared(self) -> str:
        """What the client does in the clear before the private part."""
        embedded = isinstance(self.loaded.processor, EmbeddedProcessor)
        return "the frozen image stem, EfficientNet-Lite0" if embedded else "resizing"


def _agreed(same: int, count: int) -> Told:
    low, high = rate_interval(same / count, count)
    return {"value": same / count, "low": low, "high": high}


def _network(rounds: int, most: int, seconds: float) -> Told:
    """Add a network to seconds of arithmetic: rounds of latency, and the busier way's bytes."""
    return {
        f"{name}_s": {"value": seconds + rounds * latency + 8 * most / bandwidth}
        for name, (bandwidth, latency) in NETWORKS.items()
    }


@torch.no_grad()
def _plaintext(world: World) -> Told:
    import time

    start = time.perf_counter()
    for row in world.pixels:
        embeddings(world.model, row[None])
    seconds = (time.perf_counter() - start) / len(world.pixels)
    sent = world.pixels[0].numel() * 4
    learns = "The owner sees the image; the client learns the best caption."
    return {
        "agreement": {"value": 1.0, "note": "by definition"},
        "here_s": {"value": seconds},
        **_network(2, sent, seconds),
        "bytes": {"value": float(sent)},
        "learns": {"value": learns, "unit": "text"},
    }


def _smpc(world: World) -> Told:
    plan = compile(world.model, world.public, public_parts=(world.prepared,))
    found = smpc_agreement(plan, world.pixels, world.reference, world.table, "image tower")
    query = Query("top", labels=len(world.table))
    costs = {name: plan.cost(name, query) for name in NETWORKS}
    one = next(iter(costs.values()))
    told = plan.leakage(query)
    learns = f"Client: {'; '.join(told.client)}. Owner: {'; '.join(told.server)}."
    dealt = f"{one.dealer_bytes / 1e6:.1f} MB dealt beforehand, {one.rounds} rounds"
    return {
        "agreement": _agreed(round(found.agreement * found.inputs), found.inputs),
        "here_s": {"value": found.online_seconds},
        **{f"{name}_s": {"value": cost.seconds} for name, cost in costs.items()},
        "bytes": {"value": float(one.client_bytes + one.server_bytes), "note": dealt},
        "learns": {"value": learns, "unit": "text", "note": f"assuming {told.assumption}"},
    }


@torch.no_grad()
def _he(world: World) -> Told:
    projection = getattr(world.model, "visual_projection", None)
    if projection is None:
        raise DataError("the image tower has no projection that could be computed by itself")

    def pooled(pixels: torch.Tensor) -> np.ndarray:
        parts = [
            world.model.vision_model(pixel_values=pixels[at : at + 64]).pooler_output
            for at in range(0, len(pixels), 64)
        ]
        return torch.cat(parts).double().numpy()

    weight = world.table.numpy() @ projection.weight.double().numpy()
    found = encrypted_agreement(pooled(world.pixels), weight, pooled(world.public))
    seconds = found.client_s + found.server_s
    learns = (
        "Client: the score of every caption, and with enough queries the projected captions; it "
        "runs the tower itself. Owner: that a query was asked, nothing of the image."
    )
    return {
        "agreement": _agreed(found.same, found.inputs),
        "here_s": {"value": seconds, "note": f"server {found.server_s * 1e3:.1f} ms of it"},
        **_network(2, max(found.up_bytes, found.down_bytes), seconds),
        "bytes": {
            "value": float(found.up_bytes + found.down_bytes),
            "note": f"keys once: {found.setup_bytes / 1e6:.1f} MB",
        },
        "learns": {"value": learns, "unit": "text", "note": "IND-CPA; the server is honest"},
    }
