"""How well private inference agrees with the plaintext, on real images, and at CLIP's own size.

    python -m simulations.private_inference [--images 208] [--full-size] [--out FILE.json]

Both parties and the dealer run inside this process: seconds are arithmetic without a network
(`plan.cost` adds one); rounds and bytes are those of two hosts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.inference.agreement import BATCH, Agreement, embeddings, smpc_agreement
from secure.smpc import Query, compile, infer

CALIBRATION = 128
IMAGE_SIZE, WIDTH = 224, 512
Progress = Callable[[str], None]


def image_agreement(images: int = 208, labels: int = 64, progress: Progress = print) -> Agreement:
    """Classify real images of the embedded data privately, and compare the top-1.

    The model is the embedded default. Its stem is public and frozen: the client runs it in the
    clear on its own image, and the two transformer blocks on top run privately. The labels are
    captions from the test set; the owner embeds them.

    Args:
        images: Number of test images, rounded up to a multiple of 16.
        labels: Number of candidate captions, 2 to 256.
        progress: Called with a line of text.
    """
    model, pixels, captions, calibration = _embedded_images(images)
    plan = compile(model, calibration, public_parts=("the frozen image stem, EfficientNet-Lite0",))
    table = captions[:labels]
    reference = embeddings(model, pixels)
    return smpc_agreement(plan, pixels, reference, table, "embedded image tower", progress)


def text_agreement(captions: int = 208, progress: Progress = print) -> Agreement:
    """Embed captions privately, and compare which image of the test set is nearest.

    Args:
        captions: Number of captions, rounded up to a multiple of 16.
        progress: Called with a line of text.
    """
    model, ids, images, calibration = _embedded_captions(captions)
    plan = compile(model, {"input_ids": calibration})
    with torch.no_grad():
        plain = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1).double()
    query = Query("embedding", batch=BATCH)
    found, seconds = [], 0.0
    for start in range(0, len(ids), BATCH):
        result = infer(plan, {"input_ids": ids[start : start + BATCH]}, query)
        found.append(F.normalize(result.value, dim=-1))
        seconds += result.seconds
        progress(f"captions {start + BATCH} of {len(ids)}")
    private = torch.cat(found)
    same = (private @ images.T).argmax(-1) == (plain @ images.T).argmax(-1)
    cost = plan.cost()
    return Agreement(
        "embedded text tower",
        len(ids),
        len(images),
        float(same.double().mean()),
        float((private - plain).abs().max()),
        cost.rounds,
        max(cost.client_bytes, cost.server_bytes),
        cost.dealer_bytes,
        seconds / len(ids),
    )


def full_size(layers: int = 12, labels: int = 10, progress: Progress = print) -> Agreement:
    """Run an image tower of CLIP ViT-B/32's size with random weights, all layers.

    Args:
        layers: Number of blocks, 12 in CLIP.
        labels: Number of random label embeddings.
        progress: Called with a line of text.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        num_hidden_layers=layers, image_size=IMAGE_SIZE, projection_dim=WIDTH, hidden_act="gelu"
    )
    model: Any = CLIPVisionModelWithProjection(config).eval()
    pixels = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    progress("compiling")
    plan = compile(model, pixels)
    with torch.no_grad():
        reference = F.normalize(model(pixels[:1]).image_embeds, dim=-1).double()
    table = F.normalize(torch.randn(labels, WIDTH, dtype=torch.float64), dim=-1)
    progress("dealing and running")
    start = time.perf_counter()
    result = infer(plan, {"pixel_values": pixels[:1]}, Query("scores", labels=labels), table)
    progress(f"{time.perf_counter() - start:.0f} s with the dealer's work")
    scores = reference @ table.T
    cost = plan.cost(query=Query("scores", labels=labels))
    return Agreement(
        f"CLIP ViT-B/32 size, {layers} layers, random weights",
        1,
        labels,
        float(result.value.argmax(-1) == scores.argmax(-1)),
        float((result.value - scores).abs().max()),
        cost.rounds,
        max(cost.client_bytes, cost.server_bytes),
        cost.dealer_bytes,
        result.seconds,
    )


def _rounded(count: int) -> int:
    return -(-count // BATCH) * BATCH


def _load():
    from fedvlm.data.emoji import load_emoji
    from fedvlm.data.splits import make_splits
    from fedvlm.models import load_model
    from fedvlm.seeds import ExperimentSeed

    data = load_emoji()
    return load_model(), data, make_splits(data, ExperimentSeed(0))


def _embedded_images(count: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return model, test pixels, caption embeddings (the images' own first) and calibration."""
    loaded, data, splits = _load()
    model = loaded.vlm.backbone
    rows = splits.test[: _rounded(count)]
    public = splits.public[:: max(1, len(splits.public) // CALIBRATION)]
    inputs = loaded.processor.images(data, np.concatenate([rows, public]), lambda *_: None)
    calibration = inputs(public)
    texts = list(dict.fromkeys(data.captions[int(row)] for row in rows))[:256]
    with torch.no_grad():
        captions = loaded.vlm.encode_text(loaded.processor.texts(texts)).double()
    return model, inputs(rows)["pixel_values"], captions, calibration["pixel_values"]


def _embedded_captions(count: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return model, test token ids, embeddings of the test images, and calibration ids."""
    loaded, data, splits = _load()
    rows = splits.test[: _rounded(count)]
    public = splits.public[:: max(1, len(splits.public) // CALIBRATION)]
    texts = [data.captions[int(row)] for row in np.concatenate([public, rows])]
    ids = loaded.processor.texts(texts)["input_ids"]
    inputs = loaded.processor.images(data, splits.test[:256], lambda *_: None)
    with torch.no_grad():
        images = loaded.vlm.encode_image(inputs(splits.test[:256])).double()
    return loaded.vlm.backbone, ids[len(public) :], images, ids[: len(public)]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Agreement of private inference with plaintext.")
    parser.add_argument("--images", type=int, default=208)
    parser.add_argument("--full-size", action="store_true", help="also CLIP ViT-B/32's size")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = [
        image_agreement(options.images, progress=progress),
        text_agreement(options.images, progress=progress),
    ]
    if options.full_size:
        found.append(full_size(progress=progress))
    text = json.dumps([asdict(each) for each in found], indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
