"""Search and sums: against numpy, at their limits, and labelled for what they are."""

import io
import sys

import numpy as np
import pytest

from secure.errors import ParameterError, SecureError
from secure.he import (
    EncryptedGallery,
    EncryptedSum,
    HEAggregator,
    HEParams,
    LayoutError,
    RangeError,
    max_summands,
    sum_params,
    top_k,
)
from secure.he.aggregation import sum_error
from secure.he.plans import RotationPlan, SumPlan

from .he_tools import FAST, client, through_the_wire, unit_rows


@pytest.mark.parametrize(
    ("items", "dimension"), [(1, 8), (100, 24), (3000, 64), (4097, 32), (9000, 16)]
)
def test_scores_equal_the_plaintext_scores(items, dimension):
    rng = np.random.default_rng(items)
    gallery = EncryptedGallery(unit_rows(rng, items, dimension), FAST)
    embeddings = unit_rows(np.random.default_rng(items), items, dimension)
    query = embeddings[[items // 2]]
    scores = through_the_wire(gallery, query, client(FAST))
    assert scores.shape == (1, items)
    assert np.abs(scores - query @ embeddings.T).max() < FAST.predicted_error()
    assert top_k(scores[0], 1).tolist() == [items // 2]


def test_chunks_share_their_baby_steps():
    one, ten = (RotationPlan(FAST, 512, items) for items in (4096, 40960))
    assert ten.output_blocks == 10
    assert ten.rotations < 5 * one.rotations


def test_a_bar_shows_on_a_terminal_and_nowhere_else(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    rows = unit_rows(np.random.default_rng(0), 9000, 16)
    monkeypatch.setenv("TERM", "xterm")
    for stream, progress, shown in (
        (Terminal(), True, True),
        (Terminal(), False, False),
        (io.StringIO(), True, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        EncryptedGallery(rows, FAST, progress=progress)
        assert ("encoding 9000 items" in stream.getvalue()) is shown
        assert ("100%" in stream.getvalue()) is shown


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_items():
    rng = np.random.default_rng(0)
    embeddings = unit_rows(rng, 100_000, 64)
    gallery = EncryptedGallery(embeddings, FAST)
    query = unit_rows(rng, 1, 64)
    scores = through_the_wire(gallery, query, client(FAST))[0]
    exact = (embeddings @ query.T)[:, 0]
    assert np.abs(scores - exact).max() < FAST.predicted_error()
    assert top_k(scores, 1)[0] == np.argmax(exact)


def test_top_k_is_ordered_and_refuses_nonsense():
    assert top_k(np.array([0.1, 0.9, 0.9, 0.5]), 3).tolist() == [1, 2, 3]
    assert len(top_k(np.zeros(2), 10)) == 2
    for scores, k in ((np.zeros((1, 2)), 1), (np.zeros(2), 0)):
        with pytest.raises(ParameterError):
            top_k(scores, k)


class TestSums:
    def test_the_sum_of_many(self):
        rng = np.random.default_rng(0)
        vectors = [row.astype(np.float32) for row in unit_rows(rng, 12, 5000)]
        aggregator = HEAggregator(clients=12, clip_norm=1.01)
        total = aggregator.sum(vectors)
        exact = np.sum(vectors, axis=0, dtype=np.float64)
        error = np.abs(total - exact).max()
        assert aggregator.tolerance / 30 < error <= aggregator.tolerance <= 1e-5
        assert "must not collude" in aggregator.label

    def test_fewer_clients_than_planned_is_a_dropout(self):
        aggregator = HEAggregator(clients=5, clip_norm=1.0)
        assert np.allclose(aggregator.sum([np.full(3, 0.5, np.float32)]), 0.5, atol=1e-5)

    def test_bytes_are_under_twice_float32(self):
        params = sum_params(clients=100, clip_norm=10.0, error=1e-5)
        plan = SumPlan(params, 1 << 20)
        assert plan.input_ciphertexts * sum(params.coeff_bits) * 2048 / 8 < 2 * 4 * (1 << 20)

    @pytest.mark.parametrize("shape", ["peaked", "flat"])
    def test_the_bound_on_summands_is_exact_enough(self, shape):
        params = HEParams(1024, (26,), 20)
        limit = max_summands(params)
        assert limit >= 2
        # The worst coefficient comes from a vector whose slots all have one magnitude and the
        # phases of one power of X: a constant is the simplest of them.
        vector = np.zeros(1024)
        vector[:512] = 1 / np.sqrt(512) if shape == "flat" else 0
        vector[0] = vector[0] if shape == "flat" else 1.0
        server, owner, plan = EncryptedSum(params, 1024), client(params), SumPlan(params, 1024)
        message = owner.encrypt(vector, plan).to_bytes()
        for _ in range(limit):
            server.add(message)
        total = owner.decrypt(server.result())[0]
        # One message is added over and over: its error grows with the count, not its root.
        assert np.abs(total - limit * vector).max() < limit * sum_error(params, 1)
        with pytest.raises(RangeError):
            server.add(message)
        if shape == "flat":
            # Twice as many would wrap: the bound is within a factor of two.
            wide = HEParams(1024, (26,), 20, 2.05)
            assert max_summands(wide) < limit

    def test_refusals(self):
        aggregator = HEAggregator(clients=2, clip_norm=1.0)
        good = np.zeros(4, np.float32)
        for vectors in ([], [good] * 3, [good, good[:3]], [np.zeros((2, 2), np.float32)]):
            with pytest.raises(ParameterError):
                aggregator.sum(vectors)
        for bad in (np.nan, np.inf, 2.0):
            with pytest.raises(RangeError):
                aggregator.sum([good, np.array([bad, 0, 0, 0], np.float32)])
        with pytest.raises(LayoutError, match="nothing"):
            EncryptedSum(aggregator.params, 4).result()
        with pytest.raises(ParameterError, match="does not fit"):
            sum_params(clients=1000, clip_norm=100.0, error=1e-13)

    def test_a_vector_of_another_length_is_refused(self):
        params = sum_params(2, 1.0, 1e-4)
        server = EncryptedSum(params, 10)
        with pytest.raises(SecureError):
            server.add(client(params).encrypt(np.zeros(11), SumPlan(params, 11)).to_bytes())
        assert server.count == 0
