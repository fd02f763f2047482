"""Triples as a generative model sees them: prompts with images by row, answers tokenised once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.conversation import Conversation, answers_of, conversations_of
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.questions import KIND
from fedvlm.data.table import shown
from fedvlm.errors import ConfigError
from fedvlm.models.generative import (
    AnswerBatch,
    AnswerProcessor,
    LoadedGenerative,
    PromptSource,
    left_padded,
    with_answers,
)
from fedvlm.models.generative.families import Family

_SHOWN = 3


@dataclass(frozen=True)
class EncodedAnswers:
    """Prompts and answers of a data set.

    Attributes:
        source: Makes prompts with their images, looked up by row.
        conversations: What is said before each answer, N of them.
        answers: N answers.
        answer_ids: Their ids, the end included.
        kinds: Shape (N,), str: what kind of question each is; all "" where the data doesn't say.
        domains: Shape (N,), int64.
        domain_names: Names of the domains.
        groups: Shape (N,), int64; triples whose images show the same share a number.
        processor: Whose ids they are.
        family: The model's.
    """

    source: PromptSource
    conversations: Sequence[Conversation]
    answers: Sequence[str]
    answer_ids: Sequence[list[int]]
    kinds: NDArray[np.str_]
    domains: NDArray[np.int64]
    domain_names: tuple[str, ...]
    groups: NDArray[np.int64]
    processor: AnswerProcessor
    family: Family

    def batch(self, rows: NDArray[np.int64]) -> AnswerBatch:
        """Return triples for training, padded on the right; the loss is the answers' alone.

        Args:
            rows: Shape (B,).

        Raises:
            ConfigError: Prompt and answer of a row are longer than the model's context.
        """
        answers = [self.answer_ids[int(row)] for row in rows]
        batch = with_answers(self._prompts(rows), answers, self.processor.padding, self.family)
        used = batch.inputs["attention_mask"].sum(dim=1)
        long = (used > self.processor.length).nonzero()[:, 0].tolist()
        if long:
            _refuse_long([int(rows[n]) for n in long], int(used.max()), self)
        return batch

    def prompts(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return prompts alone, padded on the left, as generation takes them."""
        return left_padded(self._prompts(rows), self.processor.padding)

    def _prompts(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        return self.source(rows, [self.conversations[int(row)] for row in rows])


def _refuse_images_in_texts(encoded: EncodedAnswers, rows: NDArray[np.int64]) -> None:
    """Refuse texts that hold what stands for an image: tokens and pixels would not fit."""
    marks = encoded.processor.image_texts
    found = [
        int(row)
        for row in rows
        if any(
            mark in text
            for mark in marks
            for text in (
                encoded.answers[int(row)],
                *(turn.text for turn in encoded.conversations[int(row)]),
            )
        )
    ]
    if found:
        first = ", ".join(str(row + 1) for row in found[:_SHOWN])
        raise ConfigError(
            f"{len(found)} {'triple holds' if len(found) == 1 else 'triples hold'} "
            f"{' or '.join(sorted(marks))}, which stands for an image: row {first}"
            f"{' …' if len(found) > _SHOWN else ''}; take it out, an image's place is made by the "
            "model's own processor"
        )


def _refuse_long(rows: list[int], longest: int, encoded: EncodedAnswers) -> None:
    first = ", ".join(f"{row + 1} ({shown(encoded.answers[row])})" for row in rows[:_SHOWN])
    raise ConfigError(
        f"{len(rows)} {'triple' if len(rows) == 1 else 'triples'} with prompt and answer are "
        f"longer than the model's context of {encoded.processor.length} tokens (the longest has "
        f"{longest}): row {first}{' …' if len(rows) > _SHOWN else ''}; shorten or remove them"
    )


def encode_answers(
    data: ImageTextData,
    model: LoadedGenerative,
    progress: Callable[[str, int, int], None],
    rows: NDArray[np.int64] | None = None,
) -> EncodedAnswers:
    """Prepare triples for a generative model; stem features are computed once and cached.

    Args:
        data: Images with answers, and prompts or chats in `more`.
        model: The model whose inputs are wanted.
        progress: Called with (task, done, total).
        rows: Shape (n,), the triples that will be used; all of them where None.

    Returns:
        The inputs of the triples.

    Raises:
        ConfigError: Triples are longer than the model's context, as far as their texts tell, a text
            holds what stands for an image, an answer has no token, or the model can't take chats.
    """
    used = np.arange(len(data)) if rows is None else rows
    processor = model.processor
    answers, conversations = tuple(answers_of(data)), conversations_of(data)
    known: dict[str, list[int]] = {}
    for answer in set(answers):
        ids = processor.answer_ids(answer)
        if not ids:
            raise ConfigError(f"the tokenizer makes no token of the answer {shown(answer)}")
        known[answer] = [*ids, processor.ends[0]]
    kinds = data.more.get(KIND, ("",) * len(data))
    encoded = EncodedAnswers(
        source=processor.source(data, used, progress),
        conversations=conversations,
        answers=answers,
        answer_ids=[known[answer] for answer in answers],
        kinds=np.array(kinds, dtype=np.str_),
        domains=data.domains,
        domain_names=data.domain_names,
        groups=data.groups,
        processor=processor,
        family=model.vlm.family,
    )
    _refuse_images_in_texts(encoded, used)
    least = _least_lengths(encoded, used)
    long = used[least > processor.length]
    if len(long):
        _refuse_long([int(row) for row in long], int(least.max()), encoded)
    return encoded


def _least_lengths(encoded: EncodedAnswers, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many tokens triples have at least, by their texts and without an image."""
    known: dict[Conversation, int] = {}
    found = np.zeros(len(rows), dtype=np.int64)
    for place, row in enumerate(rows):
        asked = encoded.conversations[int(row)]
        if asked not in known:
            known[asked] = encoded.processor.prompt_length(asked)
        found[place] = known[asked] + len(encoded.answer_ids[int(row)])
    return found
