"""Captions that differ in one word, man or woman, and what both are called without it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PROFESSIONS = (
    "health worker",
    "student",
    "teacher",
    "judge",
    "farmer",
    "cook",
    "mechanic",
    "factory worker",
    "office worker",
    "scientist",
    "technologist",
    "singer",
    "artist",
    "pilot",
    "astronaut",
    "firefighter",
    "police officer",
    "detective",
    "guard",
    "construction worker",
)
_WOMAN = re.compile(r"\b(woman|women)\b")
_MAN = re.compile(r"\b(man|men)\b")


@dataclass(frozen=True)
class Twin:
    """Two captions of a set that are the same but for one word.

    Attributes:
        woman: The caption that says woman or women.
        man: The same with man or men.
        neutral: The caption of the set that says neither, or None.
    """

    woman: str
    man: str
    neutral: str | None


def _neutral(caption: str, known: set[str]) -> str | None:
    for text in (_WOMAN.sub("person", caption), _WOMAN.sub("people", caption)):
        if text in known:
            return text
    bare = " ".join(_WOMAN.sub("", caption).replace(" :", ":").split()).strip(": ")
    return bare if bare in known else None


def twins(captions: Iterable[str]) -> tuple[Twin, ...]:
    """Find the man/woman twins among captions.

    Only captions that say one of the words once, and the other not at all, so that exactly one
    thing changes.

    Args:
        captions: Captions in small letters.

    Returns:
        Twins, by the woman's caption in alphabetical order.

    Example:
        >>> twins(["woman judge", "man judge", "judge", "woman dancing", "man"])
        (Twin(woman='woman judge', man='man judge', neutral='judge'),)
    """
    known = set(captions)
    out = []
    for caption in sorted(known):
        if len(_WOMAN.findall(caption)) != 1 or _MAN.search(caption):
            continue
        other = _WOMAN.sub(lambda found: found[0].replace("wom", "m"), caption)
        if other in known:
            out.append(Twin(caption, other, _neutral(caption, known)))
    return tuple(out)


def swap(caption: str) -> str | None:
    """Return a caption with man and woman swapped, None where it says neither, or both.

    Example:
        >>> swap("woman judge"), swap("man judge"), swap("judge")
        ('man judge', 'woman judge', None)
    """
    if _WOMAN.search(caption) and not _MAN.search(caption):
        return _WOMAN.sub(lambda found: found[0].replace("wom", "m"), caption)
    if _MAN.search(caption) and not _WOMAN.search(caption):
        return _MAN.sub(lambda found: "wo" + found[0], caption)
    return None
