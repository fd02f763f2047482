"""CLIP, SigLIP, SigLIP 2, OpenCLIP and pairs of ViT and BERT, from a folder or the hub."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.models.openclip import is_openclip, read_openclip
from fedvlm.models.pixels import PixelProcessor
from fedvlm.models.processor import LoadedModel
from fedvlm.models.vlm import PAIR, SUPPORTED, VLM
from fedvlm.models.weights import check_folder, first_line, quietly, read_model

_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")
_TOWERS = ("text_config", "vision_config")
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout",
    "activation_dropout", "projection_dropout", "drop_path_rate",
)  # fmt: skip
STEM_KEY = "fedvlm_stem"  # in config.json: the pixels are the embedded stem's feature map


class HuggingFaceProcessor(PixelProcessor):
    """A Hugging Face tokenizer and image processor behind this library's protocol.

    Args:
        tokenizer: The tokenizer.
        image_processor: The image processor.
        config: The model's configuration.

    Raises:
        ConfigError: They don't belong to the model.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        super().__init__(image_processor)
        self.tokenizer = tokenizer
        self._length = _context_length(config.text_config)
        self._rows = int(config.text_config.vocab_size)
        self._end = config.text_config.eos_token_id if config.model_type == "clip" else None
        self._padding = "longest" if config.model_type == PAIR else "max_length"
        if config.model_type in ("clip", PAIR):
            # CLIP reads the end token and ignores what follows it, BERT the first; nothing may
            # stand before.
            tokenizer.padding_side = "right"
        # SigLIP reads the last place and was trained without a mask. With one, padding would be
        # cut off, and what a caption embeds to would depend on the longest of its batch.
        masked = config.model_type == "clip"
        self._keys = ("input_ids", "attention_mask") if masked else ("input_ids",)
        if config.model_type == PAIR:
            self._keys = ("input_ids", "attention_mask", "token_type_ids")
        if tokenizer.vocab_size > self._rows:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model embeds "
                f"{self._rows:,}: it belongs to another model"
            )
        self.texts(["a photo of a cat"])  # refuses a tokenizer that can't be this model's
        _check_pixels(image_processor, config)

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return ids and, for CLIP where the tokenizer makes one, mask: shape (C, L), int64.

        For BERT both, and the kind of each token.

        Raises:
            ConfigError: A caption becomes ids that the model has no embedding for, or, for CLIP,
                has no end token, which is what the model reads.
        """
        encoded = self.tokenizer(
            list(captions),
            # SigLIP was trained on captions padded to the full length; CLIP ignores what follows
            # the end token, so this is right for both.
            padding=self._padding,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        out = {key: encoded[key] for key in self._keys if key in encoded}
        ids = out["input_ids"]
        beyond = (ids >= self._rows).any(dim=1) | (ids < 0).any(dim=1)
        if bool(beyond.any()):
            row = int(beyond.nonzero()[0])
            raise ConfigError(
                f"the tokenizer turns {captions[row]!r} into id {int(ids[row].max())}, and the "
                f"model embeds {self._rows:,}: they belong to different models"
            )
        if self._end is not None and len(ids):
            self._check_end(ids)
        return out

    def _check_end(self, ids: Tensor) -> None:
        """Refuse captions of which CLIP would read another place than their end."""
        end = self._end
        if end == 2:  # what older configurations say: CLIP then reads the largest id
            end = self.tokenizer.eos_token_id
            right = end is not None and bool((ids.max(dim=1).values == end).all())
        else:
            right = bool((ids == end).any(dim=1).all())
        if not right:
            raise ConfigError(
                f"the tokenizer ends captions with id {self.tokenizer.eos_token_id}, and the "
                f"model reads the one with id {end}: every caption would embed alike"
            )


def _context_length(text: Any) -> int:
    """Return how many tokens a text tower reads at most."""
    most = int(text.max_position_embeddings)
    if text.model_type in _OFFSET:  # RoBERTa counts its places from behind the padding's id
        most -= int(text.pad_token_id) + 1
    return most


def without_dropout(config: Any) -> None:
    """Switch dropout off in a configuration: a run's seed decides its result, and pieces add up."""
    for part in (config, *(getattr(config, name, None) for name in _TOWERS)):
        for name in _DROPOUTS:
            if part is not None and isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _check_pair(vlm: VLM, processor: "HuggingFaceProcessor") -> None:
    """Refuse a pair of towers one of which gives no pooled features."""
    grey = Image.new("RGB", (48, 40), (90, 120, 150))
    try:
        with torch.no_grad():
            vlm.encode_image(processor.pixels([grey]))
            vlm.encode_text(processor.texts(["a photo of a cat"]))
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"one of its towers gives no pooled features ({first_line(error)})"
        ) from error


def _check_pixels(image_processor: Any, config: Any) -> None:
    """Refuse an image processor whose output the model can't take."""
    grey = Image.new("RGB", (48, 40), (90, 120, 150))
    found = image_processor(images=[grey], return_tensors="pt")["pixel_values"]
    vision = config.vision_config
    if config.model_type == "siglip2":
        expected = (int(vision.num_channels) * int(vision.patch_size) ** 2,)
        shape = tuple(found.shape[-1:])
    else:
        expected = (int(vision.num_channels), int(vision.image_size), int(vision.image_size))
        shape = tuple(found.shape[1:])
    if shape != expected:
        raise ConfigError(
            f"the image processor makes pixels of shape {shape}, and the model takes {expected}: "
            "preprocessor_config.json belongs to another model"
        )
    if not bool(torch.isfinite(found).all()):
        raise ConfigError("the image processor makes pixels that are not finite: see its image_std")


def tokenizer_of(name: str) -> Any:
    """Load a tokenizer; transformers makes an empty one up where a folder has none.

    Raises:
        ConfigError: The folder has none.
    """
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir():
        files = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
        classic = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
        if not classic and not any((folder / file).exists() for file in (*files, "vocab.txt")):
            raise ConfigError("it has no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _config_of(name: str) -> Any:
    """Load a configuration whose parts have the types and sizes that a model needs."""
    from transformers import AutoConfig

    folder = Path(name)
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError("it has no config.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ConfigError("config.json is not a JSON object")
        kind = content.get("model_type")
        if kind is None:
            raise ConfigError("config.json names no model_type")
        if kind not in SUPPORTED:
            raise ConfigError(f"it is a {kind!r} model; use one of {', '.join(SUPPORTED)}")
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type not in SUPPORTED:
        raise ConfigError(f"it is a {config.model_type!r} model; use one of {', '.join(SUPPORTED)}")
    return config


def _load(name: str) -> LoadedModel:
    from transformers import AutoImageProcessor

    with quietly():
        if Path(name).is_dir():
            check_folder(Path(name))
            if is_openclip(Path(name)):
                model, config, image_processor = read_openclip(Path(name))
                processor = HuggingFaceProcessor(tokenizer_of(name), image_processor, config)
                return LoadedModel(VLM(model), processor, name)
        config = _config_of(name)
        without_dropout(config)
        if getattr(config, STEM_KEY, None):
            from fedvlm.models.embedded import EmbeddedProcessor

            processor = EmbeddedProcessor(Path(name) / "tokenizer.json")
            return LoadedModel(VLM(read_model(name, config)), processor, name)
        tokenizer = tokenizer_of(name)
        names = ("preprocessor_config.json", "processor_config.json")
        if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in names):
            raise ConfigError("it has no preprocessor_config.json")
        # The Pillow backend: the other one needs torchvision, which this library leaves out.
        image_processor = AutoImageProcessor.from_pretrained(
            name, backend="pil", trust_remote_code=False
        )
        processor = HuggingFaceProcessor(tokenizer, image_processor, config)
        vlm = VLM(read_model(name, config))
        if config.model_type == PAIR:
            _check_pair(vlm, processor)
    if tokenizer.padding_side == "left":
        vlm.left_padding = tokenizer.pad_token_id
    return LoadedModel(vlm, processor, name)


def load_huggingface(name: str) -> LoadedModel:
    """Load a dual encoder by folder or hub name, in float32 whatever it was saved in.

    Args:
        name: A folder with `config.json`, weights, tokenizer and preprocessor configuration, or
            a name on the hub. Code that comes with a model is never run.

    Guarantees:
        Every weight is the checkpoint's own; none is made up. The tokenizer tells captions apart
        and its ids have embeddings; the image processor's pixels fit.

    Raises:
        ConfigError: In one line: nothing can be loaded from there, the model is of another type,
            or its parts are torn, incomplete or don't belong together.
    """
    with loading_errors(name) as where:
        return _load(where)


@contextmanager
def loading_errors(name: str) -> Iterator[str]:
    """Find where a model's name leads to, and tell whatever goes wrong there in one line.

    Yields:
        The folder's path, or the hub's name.

    Raises:
        ConfigError: There is no such folder, or what was done with it raised.
    """
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if path.is_file():
        raise ConfigError(f"can't load model {name!r}: it is a file; name its folder")
    if is_path and not path.is_dir():
        raise ConfigError(f"can't load model {name!r}: there is no such folder")
    where = str(path) if path.is_dir() else name
    try:
        yield where
    except Exception as error:  # transformers, safetensors, tokenizers, json each raise their own
        if path.is_dir():
            what = f"can't load folder {name!r}"
        else:
            what = f"can't load {name!r}: no folder here, and nothing from the hub (offline?)"
        raise ConfigError(f"{what}: {first_line(error)}") from error
