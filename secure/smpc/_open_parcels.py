"""The dealer's memory: parcels of which the client has its half and the server not yet.

The dealer draws a parcel's identifier, so it need remember only these: what it doesn't know was
never dealt, was taken, or has expired, and is refused in every case. No identifier gets a second
pair of keys.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from secure.errors import ParameterError
from secure.random import KEY_BYTES, SecureRandom
from secure.smpc._query import Query
from secure.smpc.errors import MaterialError

ID_BYTES = 16
MAX_OPEN, MAX_OPEN_EACH = 1024, 64


@dataclass(frozen=True, repr=False)
class Opened:
    """A parcel whose server's half waits.

    Attributes:
        query: What the inference asks.
        masters: The server's and the client's key.
        client: Who opened it.
        end: When it expires, on the monotonic clock.
    """

    query: Query
    masters: tuple[bytes, bytes]
    client: bytes
    end: float


class OpenParcels:
    """Parcels that wait for the server.

    Args:
        random: Source of identifiers and keys.
        lifetime_s: How long a half waits for the other.
        most: How many wait at most.
        most_each: How many of one client wait at most.

    Guarantees:
        No more than `most` are remembered. A client at its own limit loses its own oldest; where
        all are taken, the client that holds most loses its oldest.
    """

    def __init__(
        self,
        random: SecureRandom,
        lifetime_s: float = 120.0,
        most: int = MAX_OPEN,
        most_each: int = MAX_OPEN_EACH,
    ) -> None:
        if not lifetime_s > 0 or most < 1 or most_each < 1:
            raise ParameterError("open parcels have a lifetime and a number over 0")
        self._random, self._lifetime_s = random, lifetime_s
        self._most, self._most_each = most, most_each
        self._waiting: OrderedDict[bytes, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._waiting)

    def open(self, query: Query, client: bytes) -> tuple[bytes, Opened]:
        """Draw a parcel for a client: its identifier and keys."""
        with self._lock:
            self._expire()
            held: dict[bytes, int] = {}
            for each in self._waiting.values():
                held[each.client] = held.get(each.client, 0) + 1
            if held.get(client, 0) >= self._most_each:
                self._drop_oldest(client)
            elif len(self._waiting) >= self._most:
                self._drop_oldest(max(held, key=lambda name: held[name]))
            parcel = self._random.token(ID_BYTES)
            masters = (self._random.token(KEY_BYTES), self._random.token(KEY_BYTES))
            opened = Opened(query, masters, client, time.monotonic() + self._lifetime_s)
            self._waiting[parcel] = opened
            return parcel, opened

    def take(self, parcel: bytes, query: Query) -> Opened:
        """Take a parcel for the server, once.

        Raises:
            MaterialError: It isn't waiting, or was opened for another query (and still waits).
        """
        with self._lock:
            self._expire()
            opened = self._waiting.get(parcel)
            if opened is None:
                raise MaterialError(
                    f"the parcel {parcel.hex()[:8]} was used before, has expired, or was never "
                    "dealt here; ask again"
                )
            if opened.query != query:
                raise MaterialError("the two halves were asked for different queries")
            del self._waiting[parcel]
            return opened

    def _drop_oldest(self, client: bytes) -> None:
        oldest = next(name for name, each in self._waiting.items() if each.client == client)
        del self._waiting[oldest]

    def _expire(self) -> None:
        now = time.monotonic()
        while self._waiting:
            parcel, opened = next(iter(self._waiting.items()))
            if opened.end > now:
                return
            del self._waiting[parcel]
