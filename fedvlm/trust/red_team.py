"""A model as a target of garak and of PyRIT; neither is needed for anything else here."""

import asyncio
from functools import lru_cache
from importlib import import_module
from typing import Any

from fedvlm.errors import ConfigError
from fedvlm.trust.target import Target, load_target


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{package} can't be imported ({error}); install it with: pip install {package}"
        ) from error


@lru_cache(maxsize=2)
def _loaded(run: str, most_tokens: int) -> Target:
    return load_target(run, most_tokens)


def _said(target: Target, image: str | None, prompt: str) -> str | None:
    """Answer, or None where the model can't be asked: the prompt is empty, or too long for it."""
    asked = target.without_marks(prompt)
    return target(image, asked) if asked and target.fits(asked) else None


def garak_answers(
    prompt: str, *, run: str, image: str | None = None, most_tokens: int = 64
) -> list[str | None]:
    """Answer a prompt as garak's function generator asks it (`function.Single`).

    In garak: `--target_type function --target_name fedvlm.trust.red_team#garak_answers`, with
    `run`, and `image` where there is one, as its `kwargs`.

    Args:
        prompt: Any text; what stands for an image in it is taken out.
        run: Folder of a finished run whose model answers.
        image: Path of the image that every prompt is about; None shows a blank white picture.
        most_tokens: Most tokens of an answer.

    Returns:
        One answer; None where the prompt is empty or longer than the model's context, which garak
        counts as no answer.

    Raises:
        ConfigError: There is no such run, or its model is a dual encoder.
        DataError: The image is missing or can't be read.
    """
    return [_said(_loaded(run, most_tokens), image, prompt)]


def garak_generator(target: Target) -> Any:
    """Return a garak generator that takes text and images, as its visual probes need.

    Args:
        target: The model.

    Raises:
        ConfigError: garak is not installed.
    """
    base = _need("garak.generators.base", "garak").Generator
    message = _need("garak.attempt", "garak").Message

    class FedVLMGenerator(base):
        """A vision-language model of fedvlm."""

        generator_family_name = "fedvlm"
        parallel_capable = False
        supports_multiple_generations = False
        modality = {"in": {"text", "image"}, "out": {"text"}}  # noqa: RUF012  garak's own form

        def _call_model(self, prompt: Any, generations_this_call: int = 1) -> list[Any]:
            asked = prompt.last_message()
            said = _said(target, asked.data_path, asked.text or "")
            return [None if said is None else message(said)]

    return FedVLMGenerator(name=target.name)


def pyrit_target(target: Target) -> Any:
    """Return a PyRIT prompt target that takes one text, and at most one image beside it.

    PyRIT's memory must be there first (`initialize_pyrit_async`).

    Args:
        target: The model.

    Raises:
        ConfigError: PyRIT is not installed, or is older than 1.0.
    """
    targets = _need("pyrit.prompt_target", "pyrit")
    models = _need("pyrit.models", "pyrit")
    base = targets.PromptTarget
    if not hasattr(base, "_send_prompt_to_target_async") or not hasattr(
        targets, "TargetConfiguration"
    ):
        raise ConfigError("this PyRIT is too old for a target of one's own; install pyrit>=1.0")
    takes = targets.TargetCapabilities(
        supports_multi_message_pieces=True,
        input_modalities=frozenset((frozenset(("text",)), frozenset(("text", "image_path")))),
    )

    class FedVLMTarget(base):
        """A vision-language model of fedvlm."""

        _DEFAULT_CONFIGURATION = targets.TargetConfiguration(capabilities=takes)

        def __init__(self) -> None:
            super().__init__(model_name=target.name)

        async def _send_prompt_to_target_async(
            self, *, normalized_conversation: list[Any]
        ) -> list[Any]:
            pieces = normalized_conversation[-1].message_pieces
            texts, images = (
                [p.converted_value for p in pieces if p.converted_value_data_type == kind]
                for kind in ("text", "image_path")
            )
            if len(texts) != 1 or len(images) > 1:
                raise ValueError(
                    f"this target takes one text and at most one image; got {len(texts)} texts "
                    f"and {len(images)} images"
                )
            asked = target.without_marks(texts[0])
            said = await asyncio.to_thread(target, images[0] if images else None, asked)
            return [
                models.construct_response_from_request(
                    request=pieces[0],
                    response_text_pieces=[said],
                    error="none" if said else "empty",
                )
            ]

    return FedVLMTarget()
