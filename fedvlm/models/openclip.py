"""OpenCLIP's checkpoints, read as the CLIP that they are, without OpenCLIP's own code.

The package `open_clip` can't be imported without torchvision, which this library leaves out. Its
plain towers (ViT and a causal text transformer) are CLIP's, under other names; any other kind of
tower is refused by name, before anything is loaded.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.models.weights import read_tensors, require_finite

CONFIG = "open_clip_config.json"
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
# What other settings may be without another model coming of them.
_PLAIN = {
    "patch_dropout": (0, 0.0, None), "ls_init_value": (None,), "attentional_pool": (False,),
    "pool_type": ("tok", "argmax"), "no_ln_pre": (False,), "final_ln_after_pool": (False,),
    "output_tokens": (False,), "no_causal_mask": (False,), "embed_cls": (False,),
    "proj_bias": (False,), "pos_embed_type": ("learnable",), "global_average_pool": (False,),
    "input_patchnorm": (False,), "init_logit_bias": (None,), "nonscalar_logit_scale": (False,),
}  # fmt: skip
_BICUBIC = 3
_BLOCKS = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_NAMES = (
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final", "text_model.final_layer_norm"),
    ("logit_scale", "logit_scale"),
)
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def is_openclip(folder: Path) -> bool:
    """Say whether a folder holds an OpenCLIP checkpoint and none of transformers'."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def _known(settings: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ConfigError(f"{CONFIG} has no {where}")
    for key, value in settings.items():
        if key not in known and value not in _PLAIN.get(key, ()):
            raise ConfigError(
                f"{CONFIG} sets {where}.{key} = {value!r}, which plain CLIP towers don't have; "
                "convert the checkpoint to transformers' format"
            )
    return settings


def clip_config(content: dict[str, Any]) -> Any:
    """Return transformers' configuration of an OpenCLIP model.

    Args:
        content: `open_clip_config.json`.

    Raises:
        ConfigError: The towers are none of CLIP's; the message names the setting.
    """
    from transformers import CLIPConfig

    model = _known(content.get("model_cfg"), _MODEL, "model_cfg")
    vision = _known(model.get("vision_cfg"), _VISION, "vision_cfg")
    text = _known(model.get("text_cfg"), _TEXT, "text_cfg")
    if not isinstance(vision.get("layers"), int) or "patch_size" not in vision:
        raise ConfigError(f"{CONFIG} describes a ResNet, and only ViT towers are CLIP's here")
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    rows = text["vocab_size"]
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": heads,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": act,
            "projection_dim": model["embed_dim"],
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": rows,
            "hidden_act": act,
            "projection_dim": model["embed_dim"],
            # OpenCLIP reads the largest id, which is the end token's: CLIP's last.
            "bos_token_id": rows - 2,
            "eos_token_id": rows - 1,
            "pad_token_id": 0,
        },
    )


def _renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield transformers' names and tensors of OpenCLIP's; those without a place as they are."""
    for given, tensor in state.items():
        name = given.removeprefix("module.")
        block = _BLOCK.fullmatch(name)
        if name in ("visual.proj", "text_projection"):
            new = "visual_projection" if name == "visual.proj" else "text_projection"
            yield f"{new}.weight", tensor.T.contiguous()
        elif block:
            tower = "vision_model" if block[1] else "text_model"
            place, rest = f"{tower}.encoder.layers.{block[2]}", block[3]
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{place}.self_attn.{part}_proj.{kind}", third.contiguous()
                continue
            for old, new in _BLOCKS:
                if rest.startswith(f"{old}."):
                    yield f"{place}.{new}{rest[len(old) :]}", tensor
                    break
            else:
                yield given, tensor
        else:
            old, new = next(
                ((o, n) for o, n in _NAMES if name == o or name.startswith(f"{o}.")), (name, given)
            )
            yield new + name[len(old) :], tensor


def image_processor_of(content: dict[str, Any], size: int) -> Any:
    """Return what prepares images as OpenCLIP's own evaluation transform does."""
    from transformers import CLIPImageProcessorPil

    told = content.get("preprocess_cfg") or {}
    mode, interpolation = told.get("resize_mode", "shortest"), told.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation != "bicubic":
        raise ConfigError(
            f"{CONFIG} resizes by {mode!r}, {interpolation!r}; known are shortest and squash, "
            "bicubic"
        )
    square = {"height": size, "width": size}
    means = {f"image_{key}": told[key] for key in ("mean", "std") if key in told}
    return CLIPImageProcessorPil(
        size={"shortest_edge": size} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=_BICUBIC,
        **means,
    )


def read_openclip(folder: Path) -> tuple[Any, Any, Any]:
    """Read an OpenCLIP checkpoint.

    Args:
        folder: With `open_clip_config.json` and the weights.

    Returns:
        A `CLIPModel` in float32, its configuration, and its image processor.

    Raises:
        ConfigError: The towers aren't CLIP's, or weights are torn, missing, or more than there
            are places for.
    """
    from transformers import CLIPModel

    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{CONFIG} is not a JSON object")
    try:
        config = clip_config(content)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{CONFIG} lacks a number, or has a wrong one: {error}") from error
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"it has none of {', '.join(_FILES)}")
    found = dict(_renamed(read_tensors(path)))
    with torch.device("meta"):
        model = CLIPModel(config)
    own = model.state_dict()
    both = sorted(found.keys() ^ own.keys())
    odd = [name for name in both if not name.endswith(("position_ids", "attn_mask"))]
    if odd:
        lacks = [name for name in odd if name in own]
        what = f"the checkpoint lacks {lacks[0]}" if lacks else f"there is no place for {odd[0]}"
        raise ConfigError(f"{what} ({len(odd)} names differ): it isn't a plain CLIP")
    for name, tensor in own.items():
        if name in found and found[name].shape != tensor.shape:
            raise ConfigError(
                f"weights of another shape: {name} ({tuple(found[name].shape)} in the file, "
                f"{tuple(tensor.shape)} by {CONFIG})"
            )
    model = CLIPModel(config)
    kept = {name: tensor.float() for name, tensor in found.items() if name in own}
    model.load_state_dict(kept, strict=False)
    require_finite(model)
    size = int(config.vision_config.image_size)
    return model.eval(), config, image_processor_of(content, size)
