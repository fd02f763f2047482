"""The model owner's side: which model, compiled with which public images, and its labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fedvlm.adapters import load_adapter, merge
from fedvlm.config import config_from
from fedvlm.data import load_emoji
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.result import Result
from fedvlm.files import write_text
from fedvlm.inference.preparation import (
    Preparation,
    ProcessorPreparation,
    StemPreparation,
    read_images,
)
from fedvlm.models import LoadedModel, load_model
from fedvlm.models.huggingface import HuggingFaceProcessor
from secure.smpc import Plan, compile
from secure.smpc.plan import PROGRAM_FILE, PUBLIC

_OWNER_FILE = "owner.json"
_CALIBRATION = 128
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class OwnedModel:
    """A model that its owner serves.

    Attributes:
        loaded: The model, adapters merged, and its processor.
        name: "embedded", or a folder or hub name of Hugging Face's.
        run: Folder of the run whose adapter is merged; None for the model as it is.
    """

    loaded: LoadedModel
    name: str
    run: Path | None

    @property
    def preparation(self) -> Preparation:
        """What clients do to their images before the private part."""
        processor = self.loaded.processor
        if self.loaded.vlm.head is not None:
            from fedvlm.inference.folded import HeadPreparation

            return HeadPreparation(self.loaded)
        if isinstance(processor, HuggingFaceProcessor):
            return ProcessorPreparation(processor.image_processor)
        return StemPreparation()

    @property
    def private_part(self) -> nn.Module:
        """What is computed between the two parties, behind the preparation."""
        if self.loaded.vlm.head is None:
            return self.loaded.vlm.backbone
        from fedvlm.inference.folded import FrozenFeatures

        return FrozenFeatures().eval()

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over every weight, in hex."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.loaded.vlm.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def embed_labels(self, labels: Sequence[str]) -> Tensor:
        """Embed labels in the clear: shape (labels, D), rows of length 1."""
        return self.loaded.vlm.encode_text(self.loaded.processor.texts(labels))


def load_owned(model: str = "embedded", run: Path | None = None) -> OwnedModel:
    """Load a model, or the model of a run with its adapter merged.

    Args:
        model: "embedded", or a folder or hub name of a CLIP or SigLIP; unused with `run`.
        run: Folder of a run, with `result.json` and `adapter/`.

    Raises:
        ConfigError: Nothing can be loaded, or the run's adapter has no private counterpart.
        IntegrityError: The adapter was made for another model.
    """
    if run is None:
        return OwnedModel(load_model(model), model, None)
    config = Result.load(run).config
    if "model" not in config:
        raise ConfigError(f"the result in {run} names no model")
    name = config_from({"model": config["model"]}).model.name
    loaded = load_model(name)
    load_adapter(loaded.vlm, run / "adapter")
    merge(loaded.vlm)
    if loaded.vlm.gate is not None:
        raise ConfigError(
            f"{run} has a feature gate, which has no private counterpart; use a LoRA or prompt run"
        )
    if loaded.vlm.head is not None and name != "embedded":
        raise ConfigError(
            f"{run} has a head on {name}, whose frozen tower every client would have to be given; "
            "only the embedded model's is public already. Fold the head into a linear layer "
            "(fedvlm.adapters.folding) and serve that on the tower's features"
        )
    loaded.vlm.eval()  # whatever loading an adapter left: what is served is not trained
    return OwnedModel(loaded, name, run)


def compile_model(owned: OwnedModel, folder: Path, calibration: Path | None = None) -> Plan:
    """Compile an image tower into a folder: the owner's secrets, and `public/` for the others.

    Args:
        owned: The model.
        folder: Gets `weights.npz` and `owner.json`, which stay here, and `public/`.
        calibration: Folder of public images like those to come; the embedded data's public
            concepts without one.

    Raises:
        ConfigError: The folder holds a compiled model, or the calibration has no images.
        ParameterError: The model has no private counterpart.
    """
    if (folder / PUBLIC / PROGRAM_FILE).exists():
        raise ConfigError(f"{folder} holds a compiled model; remove it or choose another folder")
    preparation = owned.preparation
    batch = preparation(_calibration_images(calibration))
    plan = compile(owned.private_part, batch, preparation.public_parts)
    preparation.write(folder / PUBLIC)
    note = {
        "model": owned.name,
        "run": None if owned.run is None else str(owned.run.resolve()),
        "weights_sha256": owned.weights_sha256,
    }
    write_text(folder / _OWNER_FILE, json.dumps(note, indent=2) + "\n")
    plan.save(folder)
    return plan


def load_compiled(folder: Path) -> tuple[OwnedModel, Plan]:
    """Load what `compile_model` wrote, and the model whose text tower embeds the labels.

    Raises:
        ConfigError: The folder holds no compiled model.
        IntegrityError: The model has changed since it was compiled.
    """
    try:
        note = json.loads((folder / _OWNER_FILE).read_text())
        name, run, digest = note["model"], note["run"], note["weights_sha256"]
        if not isinstance(name, str) or not isinstance(run, str | None):
            raise TypeError("a name of another type")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{folder} holds no compiled model; make one with: fedvlm infer compile {folder}"
        ) from error
    plan = Plan.load(folder)
    owned = load_owned(name, None if run is None else Path(run))
    if owned.weights_sha256 != digest:
        raise IntegrityError(
            f"{run or name} has changed since {folder} was compiled; compile it again"
        )
    return owned, plan


def _calibration_images(folder: Path | None) -> list[Image.Image]:
    if folder is None:
        data = load_emoji()
        rows = np.flatnonzero(data.public)
        return [data.image(int(row)) for row in rows[:: max(1, len(rows) // _CALIBRATION)]]
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ConfigError(f"{folder} has no images ({', '.join(_SUFFIXES)}) to calibrate with")
    return read_images(paths[:: max(1, len(paths) // _CALIBRATION)])
