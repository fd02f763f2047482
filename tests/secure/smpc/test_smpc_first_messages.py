"""What a client sends before the owner has agreed: nothing that its input moves."""

import pytest
import torch

from secure.errors import PeerError, SecureError
from secure.smpc import Client, Query, _wire
from secure.smpc._channel import Channel
from tests.secure.smpc.tiny import tiny

SETUP, PARCEL = bytes(range(16)), bytes(range(16, 32))


class Owner(Channel):
    """An owner's end that answers from a list, and keeps all that it was sent."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.seen = list(answers), []

    def _transfer(self, out, expect):
        if out:
            self.seen.append(bytes(out))
        if expect is None:
            return bytearray()
        if not self.answers:
            raise PeerError("gone")
        return bytearray(self.answers.pop(0))


class Held:
    """Material of which nothing is used: the session ends before."""

    def preload(self, weights):
        """Take nothing."""

    def close(self):
        """End nothing."""


class Given:
    """A source with one parcel."""

    def choose(self, program, query):
        return PARCEL

    def claim(self, program, query, setup, parcel):
        return Held()

    def discard(self, parcel):
        """Forget nothing."""


def sent(values, *answers) -> tuple[list[bytes], SecureError]:
    owner = Owner(*answers)
    client = Client(tiny()[2].program, Given(), lambda: owner)
    with pytest.raises(SecureError) as caught:
        client.ask({"features": values}, Query("scores"))
    return owner.seen, caught.value


def reply(digest: str) -> bytes:
    return _wire.pack_json({"protocol": 1, "program": digest, "setup": SETUP.hex()})


def test_nothing_of_the_input_leaves_before_the_owner_is_ready():
    _, batch, plan = tiny()
    digest = plan.program.digest
    names = sorted(plan.program.weights)
    shapes = [(tuple(plan.program.weights[name].shape), 64) for name in names]
    weights = _wire.pack([(torch.zeros(shape, dtype=torch.int64), 64) for shape, _ in shapes])
    other = _wire.pack_json({"ready": "perhaps"})
    for answers in ((), (reply("0" * 64),), (reply(digest),), (reply(digest), weights, other)):
        seen = [sent(values, *answers)[0] for values in (batch[:1], 0 * batch[:1], -batch[1:2])]
        assert seen[0] == seen[1] == seen[2]
        # The opening message and what weights are wanted; an error's text is the same, too.
        assert 1 <= len(seen[0]) <= 3
