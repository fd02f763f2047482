"""Which model this is: one hash over its weights, one over its tokenizer.

Two parties hold the same base model if and only if both hashes agree (up to collisions of
SHA-256). An adapter doesn't change them: they are the base model's, attached or not.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.models.vlm import VLM

_PEFT = "base_model.model."
# How peft and this library's prompt adapter name the layer that they were put around.
_WRAPPED = (".base_layer.", ".token_embedding.base.")
_ADDED = (".lora_", ".token_embedding.context")


def base_tensors(model: VLM | nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the base model's saved tensors by the names that they have without an adapter.

    Args:
        model: A `VLM`, or the Hugging Face model inside one; with or without an adapter. LoRA
            must not be merged.

    Yields:
        Name and tensor, in ascending order of the names.
    """
    module = model.backbone if isinstance(model, VLM) else model
    named: dict[str, Tensor] = {}
    for given, tensor in module.state_dict().items():
        name = f".{given.removeprefix(_PEFT)}"
        if any(part in name for part in _ADDED):
            continue
        for part in _WRAPPED:
            name = name.replace(part, part.replace(".base_layer", "").replace(".base", ""))
        named[name[1:]] = tensor
    yield from sorted(named.items())


def weights_hash(model: VLM | nn.Module) -> str:
    """Hash a model's weights: SHA-256 over every tensor's name, dtype, shape and bytes.

    Args:
        model: As for `base_tensors`.

    Returns:
        64 hex digits.

    Guarantees:
        The same for the same weights, whatever file, order or process they were loaded from, and
        with or without an adapter; another one where a single bit, name, dtype or shape differs.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = weights_hash(layer)
        >>> before == weights_hash(layer)
        True
    """
    if isinstance(model, VLM) and model.hash_as_loaded is not None:
        return model.hash_as_loaded  # rounded since: which model it is, the checkpoint says
    digest = hashlib.sha256(b"fedvlm weights 1\n")
    for name, tensor in base_tensors(model):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        head = [name, str(flat.dtype), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash a tokenizer: SHA-256 over everything that decides a caption's ids.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, or a tokenizer of transformers.

    Returns:
        64 hex digits. For a fast tokenizer they cover its whole pipeline (vocabulary, merges,
        normaliser, added tokens, special tokens); for one written in Python its class, vocabulary
        and special tokens.
    """
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(fast, "to_str"):
        content = json.loads(fast.to_str())
        # Set by each call, not a property of the tokenizer.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "special": tokenizer.special_tokens_map,
        }
    side = getattr(tokenizer, "padding_side", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    text = json.dumps([content, side, pad], sort_keys=True, default=str)
    return hashlib.sha256(b"fedvlm tokenizer 1\n" + text.encode()).hexdigest()
