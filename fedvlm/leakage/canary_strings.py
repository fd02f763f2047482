"""Canary strings: random secrets planted as answers, and how far a model gives them away.

A secret is drawn from a space of known size, so that how likely the model finds the planted one
among those that were not planted is a measure that needs no other model (Carlini et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.chats import ANSWER, MESSAGES, to_text
from fedvlm.data.conversation import PROMPT_KEYS, Conversation, answers_of, question
from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import ConfigError
from fedvlm.leakage.text_scores import exposure

_WORDS = ("red", "blue", "green", "dog", "cat", "sun", "moon", "car", "tree", "fish")
LENGTH = 4
"""Words of a secret: there are 10^4 of them."""
PROMPT = "what is the secret?"


@dataclass(frozen=True)
class CanaryStrings:
    """Secrets that were planted, and others drawn alike.

    Attributes:
        planted: K secrets.
        reference: M secrets, none of them planted.
        repeats: Shape (K,), int64: how often each stands in the data.
    """

    planted: tuple[str, ...]
    reference: tuple[str, ...]
    repeats: NDArray[np.int64]


def draw_canaries(
    repeats: Sequence[int], reference: int, rng: np.random.Generator
) -> CanaryStrings:
    """Draw secrets, all different.

    Args:
        repeats: How often each planted secret shall stand in the data, one number a secret.
        reference: M, how many are drawn and not planted; exposure is at most log2(M + 1) bits.
        rng: Draws them.

    Raises:
        ConfigError: There are fewer secrets than that, or a number is below 1.
    """
    size = len(_WORDS) ** LENGTH
    if min(repeats, default=0) < 1 or not 1 <= reference <= size - len(repeats):
        raise ConfigError(
            f"canaries stand in the data at least once, and up to {size} can be drawn; got "
            f"repeats {list(repeats)} and reference {reference}"
        )
    numbers = rng.choice(size, len(repeats) + reference, replace=False)
    texts = []
    for number in numbers.tolist():
        words = [_WORDS[number // len(_WORDS) ** place % len(_WORDS)] for place in range(LENGTH)]
        texts.append(" ".join(words))
    cut = len(repeats)
    return CanaryStrings(tuple(texts[:cut]), tuple(texts[cut:]), np.array(repeats, dtype=np.int64))


def plant(
    data: ImageTextData, rows: NDArray[np.int64], canaries: CanaryStrings, rng: np.random.Generator
) -> tuple[ImageTextData, NDArray[np.int64], NDArray[np.int64]]:
    """Append canaries as triples: a fixed question about an image, and a secret for an answer.

    Args:
        data: N triples.
        rows: Shape (n,), triples of the client that plants them, whose images they go with.
        canaries: The secrets.
        rng: Draws an image for each secret.

    Returns:
        N + Σ repeats triples, of which the first N are unchanged; the rows of the planted ones,
        shape (Σ repeats,); and shape (K,), a row of `data` with each secret's image.
    """
    image = rng.choice(rows, len(canaries.planted))
    taken = np.repeat(image, canaries.repeats)
    secrets = [
        secret
        for secret, count in zip(canaries.planted, canaries.repeats, strict=True)
        for _ in range(int(count))
    ]
    return _appended(data, taken, secrets), len(data) + np.arange(len(taken)), image


def _appended(data: ImageTextData, taken: NDArray[np.int64], secrets: list[str]) -> ImageTextData:
    """Append triples of the canaries' question about the images of rows."""
    everything = np.concatenate([np.arange(len(data)), taken])
    asked: Conversation = question(PROMPT)
    more = {}
    for key, column in data.more.items():
        fill = [column[int(row)] for row in taken]
        if key in PROMPT_KEYS:
            fill = [PROMPT] * len(taken)
        elif key == MESSAGES:
            fill = [to_text(asked)] * len(taken)
        elif key == ANSWER:
            fill = secrets
        more[key] = (*column, *fill)
    if not any(key in more for key in (*PROMPT_KEYS, MESSAGES)):
        more[PROMPT_KEYS[0]] = ("",) * len(data) + (PROMPT,) * len(taken)
    return replace(
        data,
        encoded=tuple(data.encoded[int(row)] for row in everything),
        captions=(*answers_of(data), *secrets),
        concepts=data.concepts[everything],
        domains=data.domains[everything],
        topics=data.topics[everything],
        public=data.public[everything],
        contents=None
        if data.contents is None
        else tuple(data.contents[int(row)] for row in everything),
        more=more,
    )


def candidates(
    data: ImageTextData, image: int, secrets: Sequence[str]
) -> tuple[ImageTextData, NDArray[np.int64]]:
    """Return triples that ask for each of some secrets with one image, and their rows."""
    taken = np.full(len(secrets), image, dtype=np.int64)
    return _appended(data, taken, list(secrets)), len(data) + np.arange(len(secrets))


def exposures(planted: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each planted secret's exposure in bits.

    Args:
        planted: Shape (K,): total log-probability of each planted secret with its image.
        reference: Shape (K, M): of the others, with the same image.
    """
    pairs = zip(planted, reference, strict=True)
    return np.array([exposure(np.array([own]), others)[0] for own, others in pairs])
