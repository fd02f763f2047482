"""Replies as no honest client sends them: a list of kinds, and a generator of more."""

import copy
import io
import pickle

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict


def _npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, words=np.zeros(3, dtype=np.uint64))
    return stream.getvalue()


def _head(text: str) -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


BYTES = {
    "no npy": b"garbage",
    "nothing": b"",
    "an archive": _npz(),
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "a broken archive": b"PK\x03\x04" + bytes(40),
    "a header of 10^12 items": _head(
        "{'descr': '<u8', 'fortran_order': False, 'shape': (1000000000000,), }"
    ),
    "a header beyond any machine": _head(
        "{'descr': '<u8', 'fortran_order': False, 'shape': (10000000000000000000000,), }"
    ),
    "a header that does not parse": _head("{'descr': '<u8', 'fortran_order': (((((((((((("),
    "a header that is no dictionary": _head("[1, 2, 3"),
    "a negative shape": _head("{'descr': '<u8', 'fortran_order': False, 'shape': (-5,), }"),
    "a pickle": _npy(np.array([{"a": 1}], dtype=object)),
    "a bare pickle": pickle.dumps([1, 2, 3]),
    "a truncated array": _npy(np.zeros(9, dtype=np.uint64))[:-5],
    "a longer array": _npy(np.zeros(9, dtype=np.uint64)) + bytes(8),
    "floats": _npy(np.full(9, np.nan)),
    "two axes": _npy(np.zeros((3, 3), dtype=np.uint64)),
    "dates": _npy(np.zeros(3, dtype="M8[s]")),
    "a structure": _npy(np.zeros(3, dtype=[("a", "<u8")])),
}
VALUES = [[], "", b"", [b""], [""], 0, -1, 1 << 62, 2.5, float("nan"), True, "x" * 500, [1] * 99]


def _array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("uint64", (3,), stype, data)


def payloads(record: str, arrays: str, carries_arrays: bool = True):
    """Yield `(name, change)`: what each makes of an honest reply."""
    for name, data in BYTES.items() if carries_arrays else ():

        def swapped(reply: Message, data=data) -> None:
            for found in reply.content.array_records.values():
                for key in list(found):
                    found[key] = _array(data)

        yield f"array: {name}", swapped
    for position in range(6):
        for value in VALUES[: 1 + (position < 2)]:

            def emptied(reply: Message, position=position, value=value) -> None:
                fields = reply.content.config_records[record]
                names = list(fields)
                if position < len(names):
                    fields[names[position]] = copy.copy(value)

            yield f"field {position}: {value!r}", emptied

    def dropped(reply: Message) -> None:
        del reply.content[record]

    def alone(reply: Message) -> None:
        reply.content[record] = ConfigRecord({})

    def other(reply: Message) -> None:
        reply.content[record] = MetricRecord({"a": 1})

    def more(reply: Message) -> None:
        reply.content["more"] = ConfigRecord({"text": ""})

    def empty_arrays(reply: Message) -> None:
        reply.content[arrays] = ArrayRecord({})

    def torch(reply: Message) -> None:
        reply.content[arrays] = ArrayRecord({"words": _array(b"x", "torch")})

    def bare(reply: Message) -> None:
        reply.content = RecordDict({})

    yield from {
        "no record": dropped,
        "an empty record": alone,
        "another kind of record": other,
        "a record more": more,
        "no arrays": empty_arrays,
        "an unknown type of array": torch,
        "nothing at all": bare,
    }.items()


def error(reply: Message) -> Message:
    """Return an error with a text of the client's own in its place."""
    return Message(Error(77, "<script>my own text</script>"), reply_to=_stub(reply))


def _stub(reply: Message) -> Message:
    meta = reply.metadata
    stub = Message(RecordDict({}), meta.src_node_id, "train")
    stub.metadata.__dict__["_message_id"] = meta.reply_to_message_id
    stub.metadata.__dict__["_dst_node_id"] = meta.src_node_id
    return stub


def mutated(rng: np.random.Generator, reply: Message, record: str) -> None:
    """Change an honest reply somewhere, at random."""
    content = reply.content
    kind = rng.integers(6)
    fields = content.config_records.get(record)
    if kind == 0 and fields:
        name = str(rng.choice(list(fields)))
        fields[name] = copy.copy(VALUES[rng.integers(len(VALUES))])
    elif kind == 1 and fields:
        name = str(rng.choice(list(fields)))
        value = fields[name]
        if isinstance(value, bytes) and value:
            data = bytearray(value)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            fields[name] = bytes(data)
        elif isinstance(value, list) and value:
            fields[name] = value[: rng.integers(len(value))] * int(rng.integers(1, 3))
        elif isinstance(value, str):
            fields[name] = value[: rng.integers(len(value) + 1)] + "]["[rng.integers(2)]
        else:
            fields[name] = int(rng.integers(-(1 << 40), 1 << 40))
    elif kind == 2 and fields:
        del fields[str(rng.choice(list(fields)))]
    elif kind == 3 and content.array_records:
        for found in content.array_records.values():
            for key in list(found):
                data = bytearray(found[key].data)
                for _ in range(int(rng.integers(1, 4))):
                    data[rng.integers(min(len(data), 140))] = rng.integers(256)
                found[key] = _array(bytes(data[: rng.integers(len(data) + 1)]))
    elif kind == 4:
        content[str(rng.choice(["a", record, "arrays"]))] = ConfigRecord({"": ""})
    else:
        for name in list(content):
            if rng.integers(2):
                del content[name]
