"""Make the embedded generative checkpoint: `python -m simulations.pretrain_answering [--out DIR]`.

From public concepts only, as two designers drew them, about 7 minutes of one core: the vision
tower and the words' embeddings start as those of the embedded dual encoder, the decoder at random;
all are trained to answer what the images' labels answer. Nothing sees a private concept. The
metrics that go into the model card are measured here, on the concepts that were held back.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedvlm.data import ImageTextData, load_emoji
from fedvlm.data.conversation import question
from fedvlm.data.emoji import OOD_DOMAIN, PRETRAINING_DOMAINS
from fedvlm.data.questions import (
    COLOUR_QUESTION,
    COUNT_QUESTION,
    NAME_QUESTION,
    TOPIC_QUESTION,
    choice_question,
    colour_of,
    count_of,
    one_of_each_image,
    questions_about,
)
from fedvlm.files import whole_file, write_text
from fedvlm.models.embedded import VOCABULARY, checkpoint_dir
from fedvlm.models.generative.embedded import (
    NAME,
    answering_checkpoint_dir,
    answering_tokenizer,
    build,
    embedded_answering_config,
)
from fedvlm.models.generative.processor import LoadedGenerative, with_answers
from fedvlm.models.stem import stem_features
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.answers import encode_answers
from fedvlm.training.generation import AnswerEvaluator

EPOCHS = 32
BATCH = 96
RATE = 1.5e-3
TOWER_RATE_FACTOR = 0.1
WEIGHT_DECAY = 0.2
DROPPED = 0.25  # share of the places of an image that are left out
NOISE = 0.3  # of the features' spread
_MEASURED = 900  # triples of a part


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _progress(task: str, done: int, total: int) -> None:
    if done == total:
        _log(f"{task}: {done}")


def fresh_state(seed: int) -> dict[str, Tensor]:
    """Return initial weights: what the dual encoder has learned, and random ones."""
    from transformers import LlavaForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(embedded_answering_config())
    state = dict(model.state_dict())
    clip = load_file(checkpoint_dir() / "model.safetensors")
    for name, tensor in clip.items():
        if name.startswith("vision_model."):
            own = f"model.vision_tower.{name.removeprefix('vision_model.')}"
            if own in state:
                state[own] = tensor.float()
    words = clip["text_model.embeddings.token_embedding.weight"].float()
    table = state["model.language_model.embed_tokens.weight"]
    table[:VOCABULARY] = words * (table.std() / words.std())
    state["lm_head.weight"] = table
    return state


def asked(label: str, topic: str, labels: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Draw a question about an image, and its answer."""
    draw = rng.random()
    colour, count = colour_of(label), count_of(label)
    if colour is not None and draw < 0.15:
        return COLOUR_QUESTION, colour
    if count is not None and draw < 0.15:
        return COUNT_QUESTION, count
    if draw < 0.5:
        other = labels[rng.integers(len(labels))]
        if other != label:
            return choice_question(label, other, bool(rng.random() < 0.5)), label
    if draw < 0.7:
        return TOPIC_QUESTION, topic
    return NAME_QUESTION, label


def pretrain(
    model: LoadedGenerative,
    data: ImageTextData,
    rows: NDArray[np.int64],
    views: list[Tensor],
    seed: ExperimentSeed,
    epochs: int,
) -> float:
    """Train all weights on public images; returns the last epoch's mean loss."""
    rng, generator = seed.numpy("questions"), seed.torch("views")
    labels = sorted({data.captions[row] for row in rows})
    own: Any = model.processor
    backbone: Any = model.vlm.backbone
    tower = [p for name, p in backbone.named_parameters() if "vision_tower" in name]
    rest = [p for name, p in backbone.named_parameters() if "vision_tower" not in name]
    groups = [{"params": rest}, {"params": tower}]
    rates = [RATE, RATE * TOWER_RATE_FACTOR]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=WEIGHT_DECAY)
    batches = len(rows) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=epochs * batches, pct_start=0.1
    )
    spread = float(views[0][:256].std())
    losses: list[float] = []
    model.vlm.train()
    for epoch in range(1, epochs + 1):
        losses = []
        order = rng.permutation(len(rows))
        for number in range(batches):
            places = order[number * BATCH : (number + 1) * BATCH]
            mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
            pixels = torch.where(mirrored, views[1][places], views[0][places])
            # Dropped patches and noise stand in for crops: the stem's features are fixed.
            kept = torch.rand(BATCH, 1, 3, 3, generator=generator) > DROPPED
            noise = torch.randn(pixels.shape, generator=generator) * (NOISE * spread)
            pairs = [
                asked(data.captions[row], data.topic_names[data.topics[row]], labels, rng)
                for row in rows[places]
            ]
            prompts = own.prompts(pixels * kept + noise, [question(q) for q, _ in pairs])
            answers = [[*own.answer_ids(a), own.ends[0]] for _, a in pairs]
            batch = with_answers(prompts, answers, own.padding, model.vlm.family)
            loss = model.vlm.answer_losses(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 5 == 0 or epoch == 1:
            _log(f"pretrain {epoch}/{epochs}: loss {np.mean(losses):.3f}")
    model.vlm.eval()
    return float(np.mean(losses))


def measure(model: LoadedGenerative, parts: dict[str, NDArray], data: ImageTextData) -> dict:
    """Return exact match by part and kind of question, on at most 900 triples of a part."""
    rng = ExperimentSeed(0).numpy("measured")
    some = {
        name: np.sort(rng.permutation(part)[:_MEASURED]).astype(np.int64)
        for name, part in parts.items()
    }
    encoded = encode_answers(data, model, _progress, np.unique(np.concatenate([*some.values()])))
    found = AnswerEvaluator(encoded, some)(model.vlm)
    return {
        name: {
            kind or "all": found.get(f"{name}_exact_match{'_' * bool(kind)}{kind}")
            for kind in ("", "name", "choice", "topic", "colour", "count")
        }
        for name in parts
    }


def _card(facts: dict[str, Any]) -> str:
    kinds = ("all", "name", "choice", "topic", "colour", "count")
    rows = [
        f"| {name} | "
        + " | ".join("–" if row[kind] is None else f"{row[kind]:.3f}" for kind in kinds)
        + " |"
        for name, row in facts["metrics"].items()
    ]
    return f"""# Model card: the embedded generative default

A LLaVA of {facts["parameters"]:,} parameters on the feature map of a frozen EfficientNet-Lite0,
shipped so that federations of models that answer can be tried, tested and measured without a
download of weights. It is small and weak on purpose: a federation has something to gain.

- **Architecture**: Hugging Face `LlavaForConditionalGeneration`. Vision: the tower of the embedded
  dual encoder (2 layers, width 192, ten tokens an image), a projector of two layers, a Llama
  decoder of 3 layers, width 160, 5 heads, {VOCABULARY} tokens and one for the image's places.
- **Answers**: five kinds of questions about emoji, in English: what it is (the CLDR label), which
  of two labels, which of eight topics, what colour, and how many people, where the label says so.
- **Data**: emoji of the public half of the concepts ({facts["images"]:,} images) as drawn by Noto
  (Apache-2.0) and Twemoji (CC-BY-4.0), with CLDR labels and groups (Unicode-3.0) by way of
  emojibase (MIT). Vision tower and words' embeddings start as those of the embedded dual encoder;
  see its card for what they were made from.
- **Licence of this checkpoint**: Apache-2.0; keep the attributions above.
- **Made by**: `python -m simulations.pretrain_answering --seed {facts["seed"]}`, in
  {facts["minutes"]:.0f} minutes ({facts["cpu_minutes"]:.0f} minutes of CPU); last loss
  {facts["loss"]:.3f} nats a token.
- **Not for**: anything but research on federations and their leakage.

Exact match of greedy answers, fractions, on up to {_MEASURED} triples of a part; "private" concepts
were seen by nobody:

| part | {" | ".join(kinds)} |
|---|{"--:|" * len(kinds)}
{chr(10).join(rows)}
"""


def main(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint")] = (
        answering_checkpoint_dir()  # noqa: B008
    ),
    seed: Annotated[int, typer.Option(help="seed of everything random here")] = 0,
    epochs: Annotated[int, typer.Option(help="passes over the public images")] = EPOCHS,
) -> None:
    """Pretrain the embedded generative model, and write the checkpoint with its card."""
    start, cpu = time.perf_counter(), time.process_time()
    root = ExperimentSeed(seed)
    data = load_emoji(_progress)
    names = np.array(data.domain_names)[data.domains]
    rows = np.flatnonzero(data.public & np.isin(names, PRETRAINING_DOMAINS))
    triples = questions_about(data)
    images, place = one_of_each_image(triples)
    # Where each label's image stands among the distinct ones: its first triple is the name's.
    first = np.flatnonzero(np.array(triples.more["kind"]) == "name")
    wanted = place[first[rows]]
    views = [
        torch.from_numpy(stem_features(images, wanted, _progress, view)[wanted].astype(np.float32))
        for view in (0, 1)
    ]
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "tokenizer.json") as temporary:
        text = (checkpoint_dir() / "tokenizer.json").read_text(encoding="utf-8")
        temporary.write_text(answering_tokenizer(text), encoding="utf-8")
    model = build(fresh_state(root.number("weights")), out / "tokenizer.json", NAME)
    loss = pretrain(model, data, rows, views, root, epochs)
    backbone: Any = model.vlm.backbone
    state = {
        name: tensor.detach().half().contiguous()
        for name, tensor in backbone.state_dict().items()
        if name != "lm_head.weight"  # the words' embeddings again
    }
    with whole_file(out / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    model = build(load_file(out / "model.safetensors"), out / "tokenizer.json", NAME)
    public, domain = triples.public, np.array(triples.domain_names)[triples.domains]
    parts = {
        "public, seen styles": np.flatnonzero(public & np.isin(domain, PRETRAINING_DOMAINS)),
        "public, unseen styles": np.flatnonzero(
            public & ~np.isin(domain, [*PRETRAINING_DOMAINS, OOD_DOMAIN])
        ),
        "private": np.flatnonzero(~public & (domain != OOD_DOMAIN)),
        f"private, {OOD_DOMAIN}": np.flatnonzero(~public & (domain == OOD_DOMAIN)),
    }
    facts = {
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "images": len(rows),
        "seed": seed,
        "minutes": (time.perf_counter() - start) / 60,
        "cpu_minutes": (time.process_time() - cpu) / 60,
        "loss": loss,
        "metrics": measure(model, parts, triples),
    }
    write_text(out / "README.md", _card(facts))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    typer.run(main)
