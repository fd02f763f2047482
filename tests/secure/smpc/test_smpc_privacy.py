"""What a party sees is independent of the secret, and no randomness is used twice."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from secure.errors import ParameterError
from secure.smpc import _attention, _norm, _ranking, _series
from secure.smpc._channel import PairChannel
from secure.smpc._domains import norm_parameters, softmax_parameters
from secure.smpc._items import Product, Truncation, Weighted
from secure.smpc._material import CLIENT, SERVER, Material, deal_item, deal_pair, weight_masks
from secure.smpc._party import Party
from secure.smpc.errors import MaterialError, PlanMismatchError
from tests.secure.fixed_random import FixedRandom
from tests.secure.smpc.pairing import run_protocol

# Every statistical test here runs on a fixed stream and asks for p > 1e-7: over the fewer than
# 100 p-values of this file the false-alarm rate of a fresh stream would be under 1e-5.
LEAST_P = 1e-7


class Tap(PairChannel):
    """A link that keeps the bodies that it received."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def exchange(self, body, length):
        got = super().exchange(body, length)
        self.seen.append(bytes(got))
        return got

    def receive(self, length, kind=1):
        got = super().receive(length, kind)
        self.seen.append(bytes(got))
        return got


def _bytes_of(seen, skip=0):
    """Return the words of every round, without their descriptors, as one array of bytes."""
    words = []
    for body in seen:
        count = int.from_bytes(body[:2], "little")
        at, sizes = 2, []
        for _ in range(count):
            bits, dims = body[at], body[at + 1]
            shape = np.frombuffer(body, "<u4", dims, at + 2)
            sizes.append((-(-bits // 8), int(np.prod(shape)), bits))
            at += 2 + 4 * dims
        for width, size, bits in sizes:
            raw = np.frombuffer(body, np.uint8, size * width, at).reshape(size, width)
            at += size * width
            if bits % 8 == 0:
                words.append(raw.reshape(-1))
    return np.concatenate(words)


SERIES = _series.fit("gelu", 6.0, 3e-4)
SCORES = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SOFTMAX = softmax_parameters("layer", 4 * SCORES, SCORES, False)
NORM = norm_parameters(
    "layer", 32, True, torch.tensor([[[1.0]], [[64.0]]], dtype=torch.float64), 32.0, 1e-5
)
PROTOCOLS = {
    "truncation": lambda p, a: p.run(p.truncation(a.value, 16))[0],
    "series": lambda p, a: p.run(p.series(a, SERIES))[0],
    "product": lambda p, a: p.run(p.product(a.value, a.value))[0],
    "norm": lambda p, a: _norm.normalise(p, a.map(lambda t: t.view(-1, 4, 32)), NORM, None)[0],
    "attention": lambda p, a: _attention.attend(
        p, *[a.map(lambda t: t[:1152].view(8, 12, 12))] * 3, SOFTMAX
    ),
    "ranking": lambda p, a: _ranking.top_k(p, a.map(lambda t: t.view(-1, 8)), 2),
}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_what_is_received_is_uniform_whatever_the_secret(name):
    views = []
    for number, secret in enumerate((torch.zeros(1280), torch.full((1280,), 3.7))):
        left, right = PairChannel.pair(20.0)
        channels = tuple(Tap(c._inbox, c._outbox, 20.0) for c in (left, right))
        run_protocol(
            PROTOCOLS[name], (secret, 16), random=FixedRandom(number + 1), channels=channels
        )
        for channel in channels:
            seen = _bytes_of(channel.seen)
            views.append(np.bincount(seen, minlength=256))
            assert stats.chisquare(views[-1]).pvalue > LEAST_P
    # Two secrets, two samples of one distribution: for what each side saw.
    for side in (0, 1):
        assert stats.chi2_contingency([views[side], views[side + 2]]).pvalue > LEAST_P


def test_what_is_opened_is_uniform_and_independent_of_the_secret():
    # The opened value of a series is the residue that hides x: compare two very different x.
    samples = []
    for number, secret in enumerate((0.0, 5.9)):
        opened = []

        def protocol(p, a, opened=opened):
            step = p.series(a, SERIES)
            (delta,) = p.open_all(step.openings)
            opened.append(delta)
            return step.finish([delta])

        run_protocol(protocol, (torch.full((20_000,), secret), 16), random=FixedRandom(number + 11))
        samples.append(opened[-1].numpy())
    for sample in samples:
        assert stats.kstest(sample / 2.0**24, "uniform").pvalue > LEAST_P
    assert stats.ks_2samp(*samples).pvalue > LEAST_P


def test_one_opening_shows_what_a_reused_mask_would_leak():
    # The tests above must be able to fail: with one mask twice, differences are the secrets'.
    item = Truncation((1000,), 16)
    server, client = deal_pair([item], {}, FixedRandom(3))
    r = server.take(item)["r"] + client.take(item)["r"]
    x = torch.randint(0, 1 << 20, (1000,), generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 1 << 20, (1000,), generator=torch.Generator().manual_seed(1))
    leaked = ((x + r) - (y + r)).numpy()
    assert np.array_equal(leaked, (x - y).numpy())
    assert stats.kstest(leaked / 2.0**63, "uniform", args=(-1, 2)).pvalue < LEAST_P


def test_the_server_sees_a_masked_input_and_the_client_masked_weights():
    weight = torch.arange(-64, 64).view(16, 8)
    masks = weight_masks(FixedRandom(5).token(32), {"w": (16, 8)})
    item = Weighted((500,), 16, 8, "w")
    server, client = deal_pair([item] * 2, masks, FixedRandom(6))
    x = torch.full((500, 16), 12345)
    seen = [(x - client.take(item)["a"]).numpy() for _ in range(2)]
    for masked in seen:
        assert stats.kstest(masked.reshape(-1) / 2.0**63, "uniform", args=(-1, 2)).pvalue > LEAST_P
    # A fresh mask each time: the same input looks different.
    assert not np.any(seen[0] == seen[1])
    hidden = (weight - masks["w"]).numpy().reshape(-1)
    assert stats.kstest(hidden / 2.0**63, "uniform", args=(-1, 2)).pvalue > LEAST_P
    assert server.take(item)["c"].shape == (500, 8)


def test_each_share_of_derived_randomness_is_uniform_alone():
    item = Product((20_000,), (20_000,))
    random = FixedRandom(8)
    server_key, client_key = random.token(32), random.token(32)
    derived = deal_item(item, server_key, client_key, {})["ab"].numpy() / 2.0**63
    assert stats.kstest(derived, "uniform", args=(-1, 2)).pvalue > LEAST_P


def test_an_item_is_handed_out_once():
    item = Truncation((4,), 8)
    server, client = deal_pair([item], {}, FixedRandom())
    for material in (server, client):
        material.take(item)
        with pytest.raises(MaterialError, match="used up"):
            material.take(item)


def test_another_item_than_the_one_due_is_refused():
    server, client = deal_pair([Truncation((4,), 8)], {}, FixedRandom())
    with pytest.raises(PlanMismatchError, match="another shape"):
        client.take(Truncation((4,), 9))
    with pytest.raises(PlanMismatchError, match="Product"):
        server.take(Product((4,), (4,)))


def test_a_closed_material_gives_nothing():
    item = Truncation((4,), 8)
    _, client = deal_pair([item], {}, FixedRandom())
    client.close()
    with pytest.raises(MaterialError):
        client.take(item)


def test_material_cannot_be_copied_and_does_not_print():
    _, client = deal_pair([Truncation((4,), 8)], {}, FixedRandom())
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(client)
    assert repr(client) == "Material(role=1, items_left=1)"


def test_material_that_ends_early_is_refused():
    item = Truncation((4,), 8)
    material = Material(SERVER, bytes(32), [item], lambda count: bytes(count - 8))
    with pytest.raises(MaterialError, match="too early"):
        material.take(item)
    with pytest.raises(ParameterError, match="derived shares"):
        Material(SERVER, bytes(32), [item])


def test_two_inferences_share_no_mask():
    item = Truncation((1000,), 8)
    draws = []
    random = FixedRandom(9)
    for _ in range(2):
        for material in deal_pair([item], {}, random):
            draws.append(material.take(item)["r"].numpy())
    everything = np.concatenate(draws)
    assert len(np.unique(everything)) == len(everything)


def test_the_client_never_holds_a_share_of_the_weights_mask():
    item = Weighted((2,), 3, 4, "w")
    masks = weight_masks(bytes(32), {"w": (3, 4)})
    _, client = deal_pair([item], masks, FixedRandom())
    assert set(client.take(item)) == {"a", "c"}


def test_a_party_has_one_of_two_roles():
    left, _ = PairChannel.pair()
    with pytest.raises(ParameterError, match="role"):
        Party(2, left, Material(CLIENT, bytes(32), []), {})
