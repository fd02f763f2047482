"""Generative VLMs from a folder or the Hugging Face hub, whole and tried once, or refused."""

import json
from pathlib import Path
from typing import Any

import torch

from fedvlm.data.conversation import question
from fedvlm.errors import ConfigError
from fedvlm.models.generative.families import FAMILIES
from fedvlm.models.generative.model import GenerativeVLM
from fedvlm.models.generative.processor import (
    HuggingFaceAnswers,
    LoadedGenerative,
    noise_image,
    with_probe,
)
from fedvlm.models.huggingface import loading_errors, tokenizer_of
from fedvlm.models.weights import check_folder, first_line, quietly, read_model

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def model_type_of(name: str) -> str | None:
    """Return the `model_type` that a folder's config.json names; None where it can't be read."""
    try:
        content = json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
        return str(content["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def is_generative(name: str) -> bool:
    """Return whether a model answers in words: by its folder, or by what the hub says of it."""
    if Path(name).expanduser().is_dir():
        return model_type_of(name) in FAMILIES
    if "/" not in name:
        return False
    from transformers import AutoConfig

    try:
        with quietly():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception:  # nothing there: the loader says so, in its own words
        return False
    return config.model_type in FAMILIES


def _without_video(base: Any) -> Any:
    """Return a processor class without the half for video, which needs torchvision."""

    class Still(base):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None and argument_name == "video_processor":
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

        @classmethod
        def _get_arguments_from_pretrained(
            cls, name: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
        ) -> list[Any]:
            from transformers import AutoImageProcessor

            made: dict[str, Any] = {"video_processor": None}
            for part in cls.get_attributes():
                if part == "tokenizer":
                    made[part] = tokenizer_of(name)
                elif part == "image_processor":
                    # The Pillow backend: the other one needs torchvision too.
                    made[part] = AutoImageProcessor.from_pretrained(
                        name, backend="pil", trust_remote_code=False
                    )
                elif part not in made:
                    raise ConfigError(f"its processor has a {part}, which is not supported")
            return [made[part] for part in cls.get_attributes()]

    Still.__name__ = base.__name__
    return Still


def _processor_of(name: str, config: Any) -> Any:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _PROCESSORS):
        raise ConfigError(
            "it has no processor (processor_config.json or preprocessor_config.json); copy it from "
            "where the model comes from"
        )
    try:
        processor = _without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(name)
    except ImportError as error:
        raise ConfigError(
            f'{first_line(error)} (it comes with: pip install "fedvlm[generative]")'
        ) from error
    if config.model_type in ("llava", "llava_next"):  # older folders leave it to the model
        vision = config.vision_config
        if processor.patch_size is None:
            processor.patch_size = vision.patch_size
            processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")
        if processor.vision_feature_select_strategy is None:
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    return processor


def _config_of(name: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"it is a {config.model_type!r} model; generative ones that are known here are "
            f"{', '.join(FAMILIES)}"
        )
    if config.get_text_config().is_encoder_decoder:
        raise ConfigError("its language model has an encoder of its own; use one with a decoder")
    return config


def _check_vocabulary(tokenizer: Any, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    most = max(tokenizer.get_vocab().values(), default=0) + 1
    if most > rows:
        raise ConfigError(
            f"the tokenizer has {most:,} tokens and the model embeds {rows:,}: it belongs to "
            "another model"
        )


def _ends_of(model: Any) -> list[int]:
    """Return the ids that the model's generation configuration ends answers with."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _tried(loaded: LoadedGenerative) -> LoadedGenerative:
    """Give a model two images of noise: does what its processor makes fit it?

    Raises:
        ConfigError: It doesn't.
    """
    own: Any = loaded.processor
    images = [noise_image(), noise_image(64, 80)]
    try:
        prompts = own.prompts(images, [question("is it?"), question("is this a cat?")])
    except ConfigError:
        raise
    except Exception as error:  # each family's processor raises its own
        raise ConfigError(f"its processor can't take an image: {first_line(error)}") from error
    places = (prompts["input_ids"] == own.image_token).sum(dim=1)
    if not bool(places.all()):
        raise ConfigError(
            f"its processor leaves no place for the image in the text (no token "
            f"{own.image_token}): chat template and processor belong to different models"
        )
    found = with_probe(loaded, prompts)
    if found.vlm.probe is None:
        raise ConfigError("the model has no probe")
    try:
        with torch.inference_mode():
            losses = found.vlm.answer_losses(found.vlm.probe)
    except Exception as error:  # each family raises its own
        raise ConfigError(
            f"the model can't take what its processor makes, with {int(places[0])} tokens for an "
            f"image: {first_line(error)}"
        ) from error
    if not bool(torch.isfinite(losses).all()):
        raise ConfigError("the model's losses are not finite on an image of noise")
    return found


def _load(name: str) -> LoadedGenerative:
    with quietly():
        if Path(name).is_dir():
            check_folder(Path(name))
        config = _config_of(name)
        processor = _processor_of(name, config)
        model = read_model(name, config, generative=True)
        _check_vocabulary(processor.tokenizer, model)
        family = FAMILIES[config.model_type]
        answers = HuggingFaceAnswers(processor, config, family, _ends_of(model))
        return _tried(LoadedGenerative(GenerativeVLM(model), answers, name))


def load_generative(name: str) -> LoadedGenerative:
    """Load a generative VLM by folder or hub name, in float32 whatever it was saved in.

    Args:
        name: "embedded-vqa", a folder with `config.json`, weights, tokenizer and processor, or a
            name on the hub. Code that comes with a model is never run.

    Guarantees:
        Every weight is the checkpoint's own; none is made up. The model was tried on two images
        of different shape: its processor's tokens and pixels fit it.

    Raises:
        ConfigError: In one line: nothing can be loaded from there, the model is of another type,
            or its parts are torn, incomplete or don't belong together.
    """
    from fedvlm.models.generative.embedded import NAME, load_embedded_answering

    if name == NAME:
        return load_embedded_answering()
    with loading_errors(name) as where:
        return _load(where)
