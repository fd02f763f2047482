"""Images, prompts and answers as a generative model takes them."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedvlm.data.conversation import Conversation
from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import ConfigError
from fedvlm.models.generative.families import Family
from fedvlm.models.generative.model import IGNORED, AnswerBatch, GenerativeVLM
from fedvlm.models.hashing import tokenizer_hash, weights_hash
from fedvlm.models.processor import ModelHashes

# Inputs that have a value a token, and what padding has there.
_BY_TOKEN = ("token_type_ids", "mm_token_type_ids")
_PROCESSOR_FILES = (".json", ".jinja", ".txt", ".model")
_NOT_PROCESSOR = ("config.json", "model", "pytorch_model", "generation_config", "adapter")
_LABELS = "labels"  # PaliGemma's processor makes some, which are not the answer's


class PromptSource(Protocol):
    """The prompts of a data set with their images, looked up by row."""

    def __call__(
        self, rows: NDArray[np.int64], conversations: Sequence[Conversation]
    ) -> dict[str, Tensor]:
        """Return the inputs of rows of shape (B,), padded on either side."""
        ...


class AnswerProcessor(Protocol):
    """Turns images, prompts and answers into what `GenerativeVLM` takes, and back."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, for `tokenizer_hash`."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer; the first is the one that is learned."""
        ...

    @property
    def padding(self) -> int:
        """The padding's id."""
        ...

    @property
    def length(self) -> int:
        """Most tokens of prompt and answer together, the image's included."""
        ...

    @property
    def image_token(self) -> int:
        """The id that stands for a part of an image."""
        ...

    @property
    def image_texts(self) -> tuple[str, ...]:
        """Texts that stand for an image, of which a prompt gets one, by the processor."""
        ...

    def source(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> PromptSource:
        """Return what makes the inputs of a data set's prompts, prepared for `rows` (n,)."""
        ...

    def prompt_length(self, conversation: Conversation) -> int:
        """Return how many tokens a prompt has at least, whatever its image."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """Return an answer's ids, tokenised apart from its prompt, without its end."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids say, without special tokens."""
        ...


@dataclass(frozen=True)
class LoadedGenerative:
    """A generative model and its processor.

    Attributes:
        vlm: The model, on the CPU, in evaluation mode.
        processor: Prepares its inputs.
        name: The folder's or hub's name, or that of the embedded one.
    """

    vlm: GenerativeVLM
    processor: AnswerProcessor
    name: str

    @cached_property
    def hashes(self) -> ModelHashes:
        """Hashes of the base model and its tokenizer; an adapter doesn't change them."""
        return ModelHashes(weights_hash(self.vlm), tokenizer_hash(self.processor.tokenizer))


def _padded(rows: Sequence[Sequence[int]], fill: int, left: bool) -> Tensor:
    longest = max(map(len, rows))
    out = torch.full((len(rows), longest), fill, dtype=torch.int64)
    for number, row in enumerate(rows):
        if row:
            place = slice(longest - len(row), None) if left else slice(len(row))
            out[number, place] = torch.tensor(row)
    return out


def _real(inputs: dict[str, Tensor], key: str) -> list[list[int]]:
    """Return the values of real tokens, row by row."""
    mask = inputs["attention_mask"].bool()
    return [row[held].tolist() for row, held in zip(inputs[key], mask, strict=True)]


def left_padded(inputs: dict[str, Tensor], padding: int) -> dict[str, Tensor]:
    """Pad prompts on the left, as generation wants them: what follows comes right behind."""
    return _filled(inputs, [[]] * len(inputs["input_ids"]), padding, 0, left=True)


def _filled(
    inputs: dict[str, Tensor],
    answers: Sequence[Sequence[int]],
    padding: int,
    answer_type: int,
    left: bool,
) -> dict[str, Tensor]:
    """Put answers behind the prompts' real tokens, and pad anew."""
    ids = [prompt + list(a) for prompt, a in zip(_real(inputs, "input_ids"), answers, strict=True)]
    out = {key: value for key, value in inputs.items() if key != _LABELS}
    out["input_ids"] = _padded(ids, padding, left)
    out["attention_mask"] = _padded([[1] * len(row) for row in ids], 0, left)
    for key in _BY_TOKEN:
        if key in inputs:
            kind = answer_type if key == "token_type_ids" else 0
            pairs = zip(_real(inputs, key), answers, strict=True)
            out[key] = _padded([types + [kind] * len(a) for types, a in pairs], 0, left)
    return out


def with_answers(
    inputs: dict[str, Tensor],
    answers: Sequence[Sequence[int]],
    padding: int,
    family: Family,
) -> AnswerBatch:
    """Put answers behind prompts, for training: padded on the right, the answers' loss alone.

    Prompt and answer are tokenised apart. The tokens of a prompt are not the first tokens of
    prompt and answer together, since merges cross the border; masking as many tokens as the prompt
    has would then train on a part of the prompt, or leave out a part of the answer.

    Args:
        inputs: Prompts, padded on either side, with their images.
        answers: Ids of each prompt's answer, its end included.
        padding: The padding's id.
        family: Whose `token_type_ids` they are.
    """
    out = _filled(inputs, answers, padding, family.answer_type, left=False)
    before = [[IGNORED] * len(row) for row in _real(inputs, "input_ids")]
    labels = [mask + list(a) for mask, a in zip(before, answers, strict=True)]
    return AnswerBatch(out, _padded(labels, IGNORED, left=False))


class HuggingFaceAnswers:
    """A Hugging Face processor behind this library's protocol.

    Args:
        processor: The model's processor: tokenizer, image processor, and how they are joined.
        config: The model's configuration.
        family: Its family.
        ends: Ids that end an answer by the model's generation configuration.

    Raises:
        ConfigError: The tokenizer has no padding, or no end.
    """

    def __init__(
        self, processor: Any, config: Any, family: Family, ends: Sequence[int] = ()
    ) -> None:
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self._family = family
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ConfigError("the tokenizer names no eos_token, so that no answer could end")
        self.ends = (int(end), *(int(one) for one in ends if one != end))
        pad = self.tokenizer.pad_token_id
        self.padding = int(end if pad is None else pad)
        if pad is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        text = config.get_text_config()
        self.length = int(getattr(text, "max_position_embeddings", 0) or 1 << 20)
        self.image_token = _image_token(config)
        named = (self.tokenizer.convert_ids_to_tokens(self.image_token), _placeholder(processor))
        self.image_texts = tuple({str(text) for text in named if text})

    def render(self, conversation: Conversation) -> str:
        """Return a conversation as the model's own template writes it, up to its answer.

        Raises:
            ConfigError: A chat for a model without a chat template.
        """
        if self._template is None:
            if len(conversation) != 1:
                raise ConfigError(
                    "the model has no chat template, so that it takes single questions; give "
                    "`prompt` and `answer` in place of `messages`"
                )
            return self._family.plain.format(
                image=_placeholder(self.processor), question=conversation[0].text
            )
        asked = next(n for n, turn in enumerate(conversation) if turn.role == "user")
        messages = []
        for number, turn in enumerate(conversation):
            content: list[dict[str, str]] = [{"type": "text", "text": turn.text}]
            if number == asked:
                content.insert(0, {"type": "image"})
            messages.append({"role": turn.role, "content": content})
        from transformers import ProcessorMixin

        # The common one: SmolVLM's own asks its half for video, which isn't there.
        return ProcessorMixin.apply_chat_template(
            self.processor, messages, add_generation_prompt=True, tokenize=False
        )

    @property
    def _template(self) -> Any:
        own = getattr(self.processor, "chat_template", None)
        return own if own is not None else getattr(self.tokenizer, "chat_template", None)

    def prompts(
        self, images: Sequence[Image.Image], conversations: Sequence[Conversation]
    ) -> dict[str, Tensor]:
        """Return the inputs of images in RGB with what is asked about each."""
        texts = [self.render(one) for one in conversations]
        begin = self.tokenizer.bos_token
        # Templates of chats write the start themselves; once is enough.
        begun = begin is not None and all(text.startswith(begin) for text in texts)
        extra = {"add_special_tokens": False} if begun else {}
        made = self.processor(
            text=texts,
            images=[[image] for image in images],
            return_tensors="pt",
            padding=True,
            **extra,
        )
        return {key: value for key, value in made.items() if isinstance(value, Tensor)}

    def source(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> PromptSource:
        """Return what processes images when they are asked for: pixels don't fit in memory."""

        def prompts(
            rows: NDArray[np.int64], conversations: Sequence[Conversation]
        ) -> dict[str, Tensor]:
            return self.prompts([data.image(int(row)) for row in rows], conversations)

        return prompts

    def save(self, source: Path, folder: Path) -> None:
        """Write tokenizer and processor files as the model's own folder has them.

        A processor without its half for video can't save itself, so that files are copied; from
        the hub's cache its parts save themselves.
        """
        if source.is_dir():
            for path in source.iterdir():
                if path.suffix in _PROCESSOR_FILES and not path.name.startswith(_NOT_PROCESSOR):
                    shutil.copyfile(path, folder / path.name)
            return
        self.tokenizer.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)

    def prompt_length(self, conversation: Conversation) -> int:
        """Return how many tokens a prompt has at least: its text's, the image's counted once."""
        return len(self.tokenizer(self.render(conversation), add_special_tokens=False)["input_ids"])

    def answer_ids(self, answer: str) -> list[int]:
        """Return an answer's ids, tokenised apart from its prompt, without its end."""
        return list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids say, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _placeholder(processor: Any) -> str:
    """Return what stands for an image in a text: Gemma's start of one, else the image token."""
    return str(getattr(processor, "boi_token", None) or getattr(processor, "image_token", ""))


def _image_token(config: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if type(value) is int:
            return value
    raise ConfigError("config.json names no image_token_id, so that no image has a place")


def noise_image(width: int = 80, height: int = 64) -> Image.Image:
    """Return an image of noise, the same each time: what a model is tried on."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_probe(loaded: LoadedGenerative, prompts: dict[str, Tensor]) -> LoadedGenerative:
    """Give a model the batch that it is tried on."""
    own = loaded.processor
    answers = [[*own.answer_ids("yes"), own.ends[0]], [*own.answer_ids("no no"), own.ends[0]]]
    loaded.vlm.probe = with_answers(prompts, answers, own.padding, loaded.vlm.family)
    return replace(loaded)
