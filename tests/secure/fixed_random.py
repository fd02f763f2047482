"""A secret source with a known key: for tests only, never importable from `secure`."""

from secure.random import SecureRandom


class FixedRandom(SecureRandom):
    """`SecureRandom` whose stream is fixed by a number."""

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self._number = number
        self._calls = 0

    def _fresh_key(self) -> bytes:
        self._calls += 1
        return self._number.to_bytes(16, "little") + self._calls.to_bytes(16, "little")
