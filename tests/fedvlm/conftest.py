"""Data and models small enough for unit tests: drawn here, never downloaded."""

import csv
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fedvlm.data import load_folder

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("circle", "square", "bar")
STYLES = ("filled", "outline", "small")


def draw(colour: str, shape: str, style: str, size: int = 32) -> bytes:
    """Draw one shape as PNG."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    inset = size // 4 if style == "small" else size // 8
    box = (inset, inset, size - inset, size - inset)
    if shape == "bar":
        box = (inset, size // 2 - 3, size - inset, size // 2 + 3)
    fill = None if style == "outline" else colour
    method = pen.ellipse if shape == "circle" else pen.rectangle
    method(box, fill=fill, outline=colour, width=2)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """A folder of 54 drawn shapes: 18 concepts by three designers."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    rows = []
    for colour in COLOURS:
        for shape in SHAPES:
            for style in STYLES:
                name = f"{colour}-{shape}-{style}.png"
                (folder / "images" / name).write_bytes(draw(colour, shape, style))
                rows.append([name, f"a {colour} {shape}", style, shape])
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "domain", "topic"])
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def shapes(shapes_folder):
    """The shapes as a data set."""
    return load_folder(shapes_folder)


def tiny_config(kind: str):
    """Return a tiny random configuration of a family."""
    import transformers

    text = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    if kind == "clip":
        return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    if kind == "siglip":
        return transformers.SiglipConfig(text_config=text, vision_config=vision)
    vision = {k: v for k, v in vision.items() if k != "image_size"} | {"num_patches": 16}
    return transformers.Siglip2Config(text_config=text, vision_config=vision)


def tiny_backbone(kind: str):
    """Return a tiny random model of a family, the same at each call."""
    import torch
    import transformers

    names = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, names[kind])(tiny_config(kind)).eval()


def tiny_inputs(kind: str, rows: int = 3):
    """Return image and caption inputs that fit `tiny_backbone`."""
    import torch

    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (rows, 8), generator=rng)
    ids[:, 0], ids[:, 6:] = 2, 3
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "siglip2":
        images = {
            "pixel_values": torch.randn(rows, 16, 8 * 8 * 3, generator=rng),
            "pixel_attention_mask": torch.ones(rows, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * rows),
        }
    else:
        images = {"pixel_values": torch.randn(rows, 3, 32, 32, generator=rng)}
    return images, texts


def save_tiny_model(kind: str, folder) -> None:
    """Write a tiny model of a family, with a tokenizer and an image processor that fit it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tiny_backbone(kind).save_pretrained(folder)
    words = ["<pad>", "<unk>", "<bos>", "<eos>", "a", *COLOURS, *SHAPES]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "siglip2":  # transformers reads every SigLIP 2's tokenizer as Gemma's BPE
        letters = [*words[:4], *"\u2581abcdefghijklmnopqrstuvwxyz"]
        tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(letters)}, []))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if kind == "clip" else "$A <eos>",
        special_tokens=[("<bos>", 2), ("<eos>", 3)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
    ).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    if kind == "clip":
        pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    elif kind == "siglip":
        pixels = transformers.SiglipImageProcessorPil(size=square)
    else:
        pixels = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    pixels.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory):
    """A folder with a tiny CLIP, as Hugging Face's own save methods write it."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    save_tiny_model("clip", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_siglip_folder(tmp_path_factory):
    """The same with a SigLIP."""
    folder = tmp_path_factory.mktemp("tiny-siglip")
    save_tiny_model("siglip", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_siglip2_folder(tmp_path_factory):
    """The same with a SigLIP 2, whose images keep their shape (NaFlex)."""
    folder = tmp_path_factory.mktemp("tiny-siglip2")
    save_tiny_model("siglip2", folder)
    return folder


@pytest.fixture
def small_run(shapes_folder, tiny_clip_folder, tmp_path, monkeypatch):
    """Settings of a federation over the shapes with the tiny CLIP: about a second a round."""
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    return {
        "data": str(shapes_folder),
        "model": str(tiny_clip_folder),
        "clients": 3,
        "partition": "iid",
        "rank": 2,
        "rounds": 3,
        "local_epochs": 1,
        "batch_size": 8,
        "references": False,
        "workers": 1,
    }


@pytest.fixture
def rng():
    """A fixed generator."""
    return np.random.default_rng(0)
