"""Names in captions replaced by keyed pseudonyms, the same for the same name at one owner."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from fedvlm.errors import ConfigError

_LEAST_KEY = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def pseudonym(name: str, key: bytes) -> str:
    """Return a pseudonym of 80 bits by HMAC-SHA-256, the same for one name in any case.

    Without the key a name can't be confirmed by trying names; with it every one can. The key
    stays with the owner of the data, comes from the OS's entropy, and is never one of another
    owner: equal pseudonyms would link their records.

    Args:
        name: Not empty.
        key: At least 32 bytes.

    Raises:
        ConfigError: A short key, or no name.
    """
    if len(key) < _LEAST_KEY:
        raise ConfigError(f"a pseudonym's key has at least {_LEAST_KEY} bytes, got {len(key)}")
    plain = " ".join(name.split()).casefold()
    if not plain:
        raise ConfigError("an empty name has no pseudonym")
    tag = int.from_bytes(hmac.new(key, plain.encode(), hashlib.sha256).digest()[:10], "big")
    return "p" + "".join(_LETTERS[(tag >> shift) & 31] for shift in range(0, 80, 5))


def pseudonymised(captions: Iterable[str], names: Iterable[str], key: bytes) -> tuple[str, ...]:
    """Replace listed names in captions, whole words and in any case, the longest first.

    A name that isn't listed stays. What identifies without a name (a rare disease, a date, the
    picture itself) stays too: this is no anonymisation.

    Args:
        captions: Captions.
        names: Names to replace.
        key: See `pseudonym`.

    Raises:
        ConfigError: A short key, an empty name, or no name at all.
    """
    listed = sorted({" ".join(name.split()) for name in names}, key=lambda name: (-len(name), name))
    if not listed:
        raise ConfigError("no names are listed: nothing would be replaced")
    tags = {name.casefold(): pseudonym(name, key) for name in listed}
    spaced = [r"\s+".join(map(re.escape, name.split())) for name in listed]
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(spaced) + r")(?!\w)", re.IGNORECASE)

    def replace(found: re.Match[str]) -> str:
        return tags[" ".join(found[0].split()).casefold()]

    return tuple(pattern.sub(replace, caption) for caption in captions)
