"""Runs a protocol with two parties in threads, on inputs shared by a fixed source."""

import torch

from secure.random import SecureRandom
from secure.smpc import _ring
from secure.smpc._channel import PairChannel
from secure.smpc._material import deal_pair
from secure.smpc._party import CountingParty, Party, Share
from secure.smpc.pair import run_both


def split(value, bits, random):
    """Share a real tensor (or integers, with bits None)."""
    whole = value if bits is None else _ring.encode(value, bits)
    mask = torch.from_numpy(random.words(whole.numel()).view("int64")).view(whole.shape)
    return Share(whole - mask, bits or 0), Share(mask, bits or 0)


def run_protocol(protocol, *inputs, random=None, channels=None):
    """Run `protocol(party, *shares)` on both sides: results by role, channels, items.

    `inputs` are pairs (tensor, bits).
    """
    random = random or SecureRandom()
    shares = [split(value, bits, random) for value, bits in inputs]
    counter = CountingParty(0, {})
    protocol(counter, *(Share(s[0].value.to("meta"), s[0].bits) for s in shares))
    materials = deal_pair(counter.items, {}, random)
    channels = channels or PairChannel.pair(20.0)

    def work(role):
        party = Party(role, channels[role], materials[role], {})
        return lambda: protocol(party, *(pair[role] for pair in shares))

    results = run_both({0: work(0), 1: work(1)}, channels)
    # What was counted on shapes is what crossed the link.
    assert counter.count.traffic.rounds == channels[0].traffic.rounds
    assert counter.count.traffic.sent_bytes == channels[0].traffic.sent_bytes
    return results, channels, counter.items


def opened(results):
    """Add two shares up: float64 for `Share`, int64 for bare tensors."""
    first, second = results
    if isinstance(first, Share):
        return _ring.decode(first.value + second.value, first.bits)
    return first + second
