"""A dual encoder's weights, read whole and in float32, or refused in one line.

transformers fills what a checkpoint lacks with random numbers, leaves out what its configuration
has no place for, and takes quantised integers for weights. Here each of these is an error: a model
that is partly made up looks like a bad model, and differs from party to party.
"""

import json
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import ConfigError

_LFS = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
_BUFFERS = ("position_ids",)  # saved by older versions; the model makes them itself
_MOST_LAYERS = 512  # of a tower; building one costs time before its size can be compared
# transformers sets torch's default dtype and its own log level while it loads: one at a time.
_lock = threading.Lock()


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return text if len(text) <= most else text[:most] + " …"


@contextmanager
def quietly() -> Iterator[None]:
    """Load without transformers' bars, tables and hints: each client loads the model."""
    from transformers.utils import logging as theirs

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = theirs.get_verbosity()
        theirs.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            theirs.set_verbosity(before)


def check_folder(folder: Path) -> None:
    """Refuse a folder with files that are Git LFS pointers, empty, or not the JSON they shall be.

    Raises:
        ConfigError: It names the file and how to get its content.
    """
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".bin", ".model"):
            continue
        with path.open("rb") as file:
            head = file.read(len(_LFS))
        if head == _LFS:
            raise ConfigError(
                f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
            )
        if not head:
            raise ConfigError(f"{path} is empty; fetch it again")
        if path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path.name} is not JSON: {first_line(error)}") from error


def _some(names: Iterable[str], most: int = 3) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, as transformers would choose them."""
    for pattern in ("model.safetensors", "model-*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ConfigError(f"{folder} has no weights: no model.safetensors and no pytorch_model.bin")


def _dtypes(path: Path) -> dict[str, str]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    state = torch.load(path, map_location="meta", weights_only=True)
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}


def _check_files(config: Any, files: list[Path], model_class: Any) -> None:
    """Refuse, before anything is allocated, what can't be this model's weights."""
    if getattr(config, "quantization_config", None):
        raise ConfigError("the checkpoint is quantised; use one in float32, bfloat16 or float16")
    for tower in (config.text_config, config.vision_config):
        if not 0 < tower.num_hidden_layers <= _MOST_LAYERS:
            raise ConfigError(f"config.json names {tower.num_hidden_layers} layers in a tower")
    for path in files:
        try:
            dtypes = _dtypes(path)
        except Exception as error:  # safetensors, zipfile and pickle each raise their own
            raise ConfigError(
                f"{path} is torn or not a file of weights ({first_line(error)}); fetch it again"
            ) from error
        _refuse_integers(path, dtypes)
    with torch.device("meta"):
        expected = sum(p.numel() for p in model_class(config).parameters())
    size = sum(path.stat().st_size for path in files)
    if expected > size:  # a weight takes two bytes or more
        raise ConfigError(
            f"config.json describes {expected:,} weights, and the files hold {size:,} bytes; "
            "they belong to different models"
        )


def read_model(name: str, config: Any) -> nn.Module:
    """Read a model's weights as float32, all of them from the checkpoint.

    Args:
        name: A folder, or a name on the hub; call this within `quietly`.
        config: Its configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: Weights are torn, quantised, not finite, of another shape, missing, or more
            than the configuration has places for; the message names the first few.
        OSError: There is nothing under that name.
    """
    from transformers import MODEL_MAPPING, AutoModel

    if Path(name).is_dir():
        _check_files(config, weight_files(Path(name)), MODEL_MAPPING[type(config)])
    model, found = AutoModel.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # collected and refused below, by name
        output_loading_info=True,
    )
    mismatched = {
        f"{key} ({tuple(there)} in the file, {tuple(here)} by config.json)"
        for key, there, here in found["mismatched_keys"]
    }
    if mismatched:
        raise ConfigError(f"weights of another shape: {_some(mismatched)}")
    if found["missing_keys"]:
        raise ConfigError(
            f"the checkpoint lacks {len(found['missing_keys'])} of the model's weights: "
            f"{_some(found['missing_keys'])}"
        )
    unknown = {key for key in found["unexpected_keys"] if not key.endswith(_BUFFERS)}
    if unknown:
        raise ConfigError(
            f"config.json has no place for {len(unknown)} of the checkpoint's weights: "
            f"{_some(unknown)}; without them it would be another model"
        )
    require_finite(model)
    return model.float().eval()


def require_finite(model: nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        ConfigError: It names the first few.
    """
    broken = {
        key
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    }
    if broken:
        raise ConfigError(f"weights that are not finite: {_some(broken)}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code in it.

    Raises:
        ConfigError: It is torn, no such file, or stored in integers.
    """
    try:
        dtypes = _dtypes(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        raise ConfigError(
            f"{path} is torn or not a file of weights ({first_line(error)}); fetch it again"
        ) from error
    _refuse_integers(path, dtypes)
    return state


def _refuse_integers(path: Path, dtypes: dict[str, str]) -> None:
    odd = {n: d for n, d in dtypes.items() if d not in _FLOATS and not n.endswith(_BUFFERS)}
    if odd:
        name = min(odd)
        raise ConfigError(
            f"{path}: {name} is stored as {odd[name]}; use a checkpoint in float32, bfloat16 "
            "or float16"
        )
