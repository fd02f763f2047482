"""A trained model without this library: a plain folder in Hugging Face's format."""

import shutil
import tempfile
from pathlib import Path

from fedvlm.adapters import merge
from fedvlm.errors import ConfigError, DataError, IntegrityError
from fedvlm.models import load_any, weights_hash
from fedvlm.models.embedded import EmbeddedProcessor, checkpoint_dir
from fedvlm.models.generative.embedded import NAME as EMBEDDED_ANSWERING
from fedvlm.models.generative.processor import HuggingFaceAnswers
from fedvlm.models.huggingface import STEM_KEY, HuggingFaceProcessor
from fedvlm.models.weights import quietly
from fedvlm.trained.model import TrainedModel


def export_merged(trained: TrainedModel, out: str | Path) -> Path:
    """Fold a run's LoRA into its base model and save the whole.

    Args:
        trained: The model of a run; its LoRA is merged in place.
        out: Folder to make, with `config.json`, `model.safetensors`, the tokenizer's and the image
            processor's files. The embedded model has no image processor: its pixels are its stem's
            feature map, and `fedvlm.models.load_model` on the folder knows that.

    Returns:
        The folder.

    Guarantees:
        The folder was loaded back, and has the merged weights bit by bit: it scores as the run's
        model does.

    Raises:
        ConfigError: The adapter is no LoRA, the model can't stand alone, or the folder holds
            something.
        DataError: The folder can't be written.
        IntegrityError: What was written isn't what was meant.
    """
    out = Path(out)
    if not trained.spec.is_lora:
        raise ConfigError(
            f"a {trained.spec.kind} adapter can't be folded into the model's own weights, only a "
            "LoRA can; use adapter/ with fedvlm.adapters.load_adapter, and for a head's linear "
            "layer fedvlm.adapters.folding"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; choose another")
    model = trained.model
    if model.name == EMBEDDED_ANSWERING:
        raise ConfigError(
            "the embedded generative model stands on a stem that no folder of transformers has; "
            "use adapter/ with fedvlm.adapters.load_adapter"
        )
    merge(model.vlm)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
            folder = Path(name) / "model"
            _write(trained, folder)
            if weights_hash(load_any(str(folder)).vlm) != weights_hash(model.vlm):
                raise IntegrityError(f"{out}: the saved weights differ from the merged ones")
            if out.exists():
                out.rmdir()
            folder.replace(out)
    except OSError as error:
        raise DataError(f"can't write {out}: {error.strerror or error}") from error
    return out


def _write(trained: TrainedModel, folder: Path) -> None:
    model = trained.model
    backbone = model.vlm.backbone
    if isinstance(model.processor, EmbeddedProcessor):
        setattr(backbone.config, STEM_KEY, "efficientnet-lite0")
    with quietly():
        backbone.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        if isinstance(model.processor, HuggingFaceProcessor):
            model.processor.tokenizer.save_pretrained(folder)
            model.processor.image_processor.save_pretrained(folder)
        if isinstance(model.processor, HuggingFaceAnswers):
            model.processor.save(Path(model.name), folder)
    if isinstance(model.processor, EmbeddedProcessor):
        shutil.copyfile(checkpoint_dir() / "tokenizer.json", folder / "tokenizer.json")
