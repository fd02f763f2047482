"""Vision-language models behind one small protocol: the embedded default and Hugging Face's."""

from fedvlm._torchvision import hide_if_broken
from fedvlm.models.hashing import tokenizer_hash, weights_hash
from fedvlm.models.processor import (
    ImageInputs,
    LoadedModel,
    ModelHashes,
    Processor,
    told_apart,
)
from fedvlm.models.vlm import VLM

__all__ = [
    "VLM",
    "ImageInputs",
    "LoadedModel",
    "ModelHashes",
    "Processor",
    "load_model",
    "tokenizer_hash",
    "told_apart",
    "weights_hash",
]

hide_if_broken()


def load_model(name: str = "embedded") -> LoadedModel:
    """Load a model by name.

    Args:
        name: "embedded" for the small model shipped with the library, or a folder or hub name
            of a Hugging Face CLIP, SigLIP, SigLIP 2 or pair of ViT and BERT, or a folder of an
            OpenCLIP; or "python:FILE.py:FUNCTION", which runs that function of yours (see
            `own_model`).

    Returns:
        The model and what prepares its inputs.

    Raises:
        ConfigError: Nothing can be loaded under that name.
    """
    if name == "embedded":
        from fedvlm.models.embedded import load_embedded

        return load_embedded()
    if name.startswith("python:"):
        from fedvlm.models.own import load_own

        return load_own(name)
    from fedvlm.models.huggingface import load_huggingface

    return load_huggingface(name)
