"""How well an answer in words is: exact match, token F1, ROUGE-L."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fedvlm.errors import ConfigError

_ARTICLES = frozenset(("a", "an", "the"))


def words_of(text: str) -> list[str]:
    """Return a text's words in small letters, without punctuation and articles.

    As SQuAD's scores do (Rajpurkar et al. 2016, section 6.1), but that punctuation parts words:
    decoders write "o ' clock" where people write "o'clock".

    Example:
        >>> words_of("The red, hot chili!")
        ['red', 'hot', 'chili']
    """
    return [word for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES]


def exact_match(answer: str, reference: str) -> float:
    """Return 1 where both have the same words in the same order, else 0.

    Example:
        >>> exact_match("a red apple.", "red apple"), exact_match("apple", "red apple")
        (1.0, 0.0)
    """
    return float(words_of(answer) == words_of(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of words, each counted as often as it comes.

    Example:
        >>> round(token_f1("a red apple", "green apple"), 3)
        0.5
    """
    given, wanted = words_of(answer), words_of(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


@lru_cache(maxsize=1)
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(
            "rouge-score, which scores answers, is not installed; install it with: "
            'pip install "fedvlm[generative]"'
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=False)


def require_scores() -> None:
    """Refuse to go on without the library that scores answers.

    Raises:
        ConfigError: It is missing.
    """
    _scorer()


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L's F-measure (Lin 2004, section 3) by `rouge-score`, without stemming."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def text_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Score answers one by one.

    Args:
        answers: N texts.
        references: N texts.

    Returns:
        `exact_match`, `token_f1` and `rouge_l`, N numbers in [0, 1] each.
    """
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": [exact_match(*pair) for pair in pairs],
        "token_f1": [token_f1(*pair) for pair in pairs],
        "rouge_l": [rouge_l(*pair) for pair in pairs],
    }
