"""How correlated randomness is dealt, carried and used: each item once.

The dealer draws two 32-byte keys. A party expands its key into one key an item (AES-256-CTR) and
each item's key into its masks and, for the client, its shares of the derived tensors; the server
also gets its derived shares as bytes. See `secure.smpc._items`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.random import KEY_BYTES, SecureRandom, keystream
from secure.smpc import _ring
from secure.smpc._items import Item, Piece, Tensors, Weighted
from secure.smpc.errors import MaterialError, PlanMismatchError, WireError

SERVER, CLIENT = 0, 1
_KEY_WORDS = KEY_BYTES // 8


def expand_keys(master: bytes, count: int) -> list[bytes]:
    """Expand a master key into `count` keys of 32 bytes."""
    words = keystream(master, count * _KEY_WORDS).astype("<u8").tobytes()
    return [words[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(count)]


def _uniform(key: bytes, pieces: Sequence[Piece]) -> Tensors:
    """Draw uniform tensors of the pieces' shapes and moduli, in order, from one key."""
    sizes = [int(np.prod(piece.shape, dtype=np.int64)) for piece in pieces]
    words = torch.from_numpy(keystream(key, sum(sizes)).view(np.int64))
    drawn, at = {}, 0
    for piece, size in zip(pieces, sizes, strict=True):
        part = words[at : at + size].view(piece.shape)
        drawn[piece.name] = _ring.low_bits(part, piece.bits)
        at += size
    return drawn


def _own_draws(item: Item, role: int) -> list[Piece]:
    """List the pieces of an item that a party draws from its own key."""
    if role == CLIENT:
        return list(item.pieces)
    return [piece for piece in item.pieces if piece.kind == "mask"]


def weight_masks(key: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Expand the lasting masks B of the weights, one uniform tensor a name."""
    names = sorted(shapes)
    keys = expand_keys(key, len(names))
    return {
        name: _uniform(each, [Piece("b", tuple(shapes[name]))])["b"]
        for name, each in zip(names, keys, strict=True)
    }


def deal_item(item: Item, server_key: bytes, client_key: bytes, weights: Tensors) -> Tensors:
    """Return the server's shares of an item's derived tensors: the dealer's whole work."""
    server = _uniform(server_key, _own_draws(item, SERVER))
    client = _uniform(client_key, _own_draws(item, CLIENT))
    masks = {}
    for piece in item.pieces:
        if piece.kind == "mask":
            masks[piece.name] = _ring.low_bits(server[piece.name] + client[piece.name], piece.bits)
        elif piece.kind == "client":
            masks[piece.name] = client[piece.name]
    whole = item.derive(masks, weights)
    return {
        piece.name: whole[piece.name] - client[piece.name]
        for piece in item.pieces
        if piece.kind == "derived"
    }


def deal(items: Sequence[Item], masters: tuple[bytes, bytes], weights: Tensors) -> Iterator[bytes]:
    """Yield the server's derived shares as bytes, item by item.

    Args:
        items: What an inference uses, in order.
        masters: The server's and the client's 32-byte keys, drawn for this inference alone.
        weights: The weight masks of the set-up.
    """
    keys = [expand_keys(master, len(items)) for master in masters]
    for item, server_key, client_key in zip(items, *keys, strict=True):
        shares = deal_item(item, server_key, client_key, weights)
        yield b"".join(
            shares[piece.name].contiguous().numpy().astype("<i8", copy=False).tobytes()
            for piece in item.pieces
            if piece.kind == "derived"
        )


class Material:
    """One party's correlated randomness for one inference.

    Args:
        role: 0 for the server (the model's owner), 1 for the client.
        master: The party's 32-byte key.
        items: What the program asks for, in order.
        read: For the server: returns the next so many bytes of derived shares.
        close: Ends that reading.

    Guarantees:
        An item is handed out once, in its order, and its key is forgotten; asking for another
        item than the one that is due, or for one more, raises.
    """

    def __init__(
        self,
        role: int,
        master: bytes,
        items: Sequence[Item],
        read: Callable[[int], bytes | bytearray] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        if role == SERVER and read is None:
            raise ParameterError("the server's material comes with its derived shares")
        self._role = role
        self._read = read
        self._close = close
        keys = expand_keys(master, len(items))
        self._due: deque[tuple[Item, bytes | Tensors]] = deque(zip(items, keys, strict=True))

    def close(self) -> None:
        """Forget what is left; it can't be taken any more."""
        self._due.clear()
        self._close()

    def __repr__(self) -> str:
        return f"Material(role={self._role}, items_left={len(self._due)})"

    def __reduce__(self):
        raise TypeError("correlated randomness can't be pickled: a copy would be a second use")

    def _expand(self, item: Item, key: bytes) -> Tensors:
        shares = _uniform(key, _own_draws(item, self._role))
        if self._role == CLIENT or self._read is None:
            return shares
        data = self._read(item.dealt_bytes)
        if len(data) != item.dealt_bytes:
            raise MaterialError("the dealer's material ends too early")
        words = np.frombuffer(bytearray(data), dtype="<i8").astype(np.int64, copy=False)
        at = 0
        for piece in item.pieces:
            if piece.kind == "derived":
                size = int(np.prod(piece.shape, dtype=np.int64))
                shares[piece.name] = torch.from_numpy(words[at : at + size].reshape(piece.shape))
                at += size
        return shares

    def preload(self, masked_weights: Mapping[str, Tensor] | None = None) -> None:
        """Do the work that needs no input: expand every item and, on the client, fold in A·D.

        Args:
            masked_weights: The client's D = W − B by name.
        """
        ready: deque[tuple[Item, bytes | Tensors]] = deque()
        for item, key in self._due:
            shares = self._expand(item, key) if isinstance(key, bytes) else key
            if masked_weights is not None and isinstance(item, Weighted) and "u" not in shares:
                shares["u"] = fold_masked_weight(item, shares, masked_weights)
            ready.append((item, shares))
        self._due = ready

    def take(self, item: Item) -> Tensors:
        """Hand out the next item.

        Raises:
            MaterialError: All items have been used.
            PlanMismatchError: Another item is due: the parties or the dealer disagree.
        """
        if not self._due:
            raise MaterialError("this inference's correlated randomness is used up; deal anew")
        due, held = self._due.popleft()
        if due != item:
            raise PlanMismatchError(
                f"the program asks for a {type(item).__name__}, the dealer made a "
                f"{type(due).__name__} of another shape or kind"
            )
        return held if isinstance(held, dict) else self._expand(due, held)


def fold_masked_weight(
    item: Weighted, shares: Tensors, masked_weights: Mapping[str, Tensor]
) -> Tensor:
    """Return the client's share A·D + C of a product with a weight."""
    masked = masked_weights[item.weight]
    product = shares["a"] * masked if item.diagonal else _ring.matmul(shares["a"], masked)
    return product + shares["c"]


def _reader(chunks: Iterator[bytes]) -> Callable[[int], bytes]:
    """Turn the dealer's chunks, one an item, into a read function."""

    def read(count: int) -> bytes:
        chunk = next(chunks, b"")
        if len(chunk) != count:
            raise WireError("the dealer's material is not the one that is due")
        return chunk

    return read


def deal_pair(
    items: Sequence[Item], weights: Tensors, random: SecureRandom
) -> tuple[Material, Material]:
    """Deal one inference inside this process: the server's and the client's material.

    For a pair of parties in one process, where the dealer is the process itself. The derived
    shares are made when the server asks for them.
    """
    masters = (random.token(KEY_BYTES), random.token(KEY_BYTES))
    chunks = deal(items, masters, weights)
    server = Material(SERVER, masters[0], items, _reader(chunks))
    return server, Material(CLIENT, masters[1], items)
