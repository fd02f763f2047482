"""Membership attacks by vantage: each names what it must have seen, and raises elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedvlm.leakage import scores as formulas
from fedvlm.leakage.probe import Candidates, Probe
from fedvlm.leakage.vantage import View

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Attack:
    """A membership attack.

    Attributes:
        name: How tables call it.
        needs: Fields of a `View` that it must have seen.
        score: Function of view, probe and candidates; returns shape (N,), higher for members.
    """

    name: str
    needs: tuple[str, ...]
    score: Callable[[View, Probe, Candidates], Array]

    def available(self, view: View) -> bool:
        """Return whether a party saw what this attack needs."""
        return all(getattr(view, field) is not None for field in self.needs)

    def __call__(self, view: View, probe: Probe, candidates: Candidates) -> Array:
        """Score candidates.

        Raises:
            WrongVantageError: The view lacks what the attack needs.
        """
        for field in self.needs:
            view.need(field, self.name)
        return self.score(view, probe, candidates)


def _similarity(view: View, probe: Probe, who: Candidates) -> Array:
    return probe.cosines(view.api, who.indices).own


def _augmented(view: View, probe: Probe, who: Candidates) -> Array:
    own = probe.cosines(view.api, who.indices).own
    return formulas.augmented_similarity(own, probe.mirrored(view.api, who.indices))


def _delta_cosine(view: View, probe: Probe, who: Candidates) -> Array:
    before = probe.cosines(view.initial, who.indices).own
    return probe.cosines(view.api, who.indices).own - before


def _delta_margin(view: View, probe: Probe, who: Candidates) -> Array:
    before = probe.cosines(view.initial, who.indices).margin
    return probe.cosines(view.api, who.indices).margin - before


def _population(view: View, probe: Probe, who: Candidates) -> Array:
    released = view.need("released", "attack-p")
    losses = -probe.cosines(released, who.indices).margin
    return formulas.attack_p(losses, -probe.cosines(released, probe.population).margin)


def _calibrated_ratio(view: View, probe: Probe, who: Candidates) -> Array:
    """RMIA with the public backbone as its only reference: it trained on no candidate."""
    released = view.need("released", "rmia")
    pair = [expit(probe.cosines(a, who.indices).margin) for a in (released, view.initial)]
    base = [expit(probe.cosines(a, probe.population).margin) for a in (released, view.initial)]
    return formulas.rmia_offline(pair[0], pair[1], base[0], base[1])


def _gradient_norm(view: View, probe: Probe, who: Candidates) -> Array:
    released = view.need("released", "gradient-norm")
    return -probe.alignment(released, who.indices, np.zeros((1, len(released)), np.float32))[1]


def _trajectory(view: View, probe: Probe, who: Candidates) -> Array:
    seen = [*view.need("globals_", "loss-trajectory"), view.need("released", "loss-trajectory")]
    return formulas.loss_trajectory(
        np.stack([probe.cosines(adapter, who.indices).margin for adapter in seen])
    )


def _cosine_to_sum(view: View, probe: Probe, who: Candidates) -> Array:
    aggregates = view.need("aggregates", "cosine-to-sum")
    dots, norms = [], []
    for start, update in zip(view.need("globals_", "cosine-to-sum"), aggregates, strict=True):
        dot, norm = probe.alignment(start, who.indices, update[None])
        dots.append(dot[0])
        norms.append(norm)
    lengths = np.linalg.norm(aggregates, axis=1)
    return formulas.average_cosine(np.stack(dots), np.stack(norms), lengths)


def _client_alignment(view: View, probe: Probe, who: Candidates) -> tuple[Array, Array, Array]:
    """Return dots (T, K, N), gradient norms (T, N) and update norms (T, K)."""
    # Clients beyond the configured number are canaries, and no one's to be told from.
    updates = view.need("updates", "server attacks")[:, : probe.task.config.data.clients]
    found = [
        probe.alignment(start, who.indices, update)
        for start, update in zip(view.need("globals_", "server attacks"), updates, strict=True)
    ]
    return (
        np.stack([dots for dots, _ in found]),
        np.stack([norms for _, norms in found]),
        np.linalg.norm(updates, axis=2),
    )


def _by_client(who: Candidates, score: Callable[[int, NDArray[np.bool_]], Array]) -> Array:
    out = np.empty(len(who.indices))
    for client in np.unique(who.clients):
        chosen = who.clients == client
        out[chosen] = score(int(client), chosen)
    return out


def _average_cosine(view: View, probe: Probe, who: Candidates) -> Array:
    dots, norms, lengths = _client_alignment(view, probe, who)
    return _by_client(
        who,
        lambda k, at: formulas.average_cosine(dots[:, k, at], norms[:, at], lengths[:, k]),
    )


def _gradient_difference(view: View, probe: Probe, who: Candidates) -> Array:
    dots, norms, _ = _client_alignment(view, probe, who)
    return _by_client(who, lambda k, at: formulas.gradient_difference(dots[:, k, at], norms[:, at]))


def _fed_mia(view: View, probe: Probe, who: Candidates) -> Array:
    dots, norms, lengths = _client_alignment(view, probe, who)
    cosines = dots / np.maximum(norms[:, None, :] * lengths[:, :, None], 1e-12)
    return _by_client(who, lambda k, at: formulas.fed_mia(cosines[:, :, at], k))


def _client_margin(view: View, probe: Probe, who: Candidates) -> Array:
    """Mean gain in φ from the round's global adapter to the client's own."""
    updates = view.need("updates", "client-margin")
    starts = view.need("globals_", "client-margin")

    def gain(client: int, at: NDArray[np.bool_]) -> Array:
        rows = who.indices[at]
        rounds = [
            probe.cosines(start + update[client], rows).margin - probe.cosines(start, rows).margin
            for start, update in zip(starts, updates, strict=True)
        ]
        return np.stack(rounds).mean(axis=0)

    return _by_client(who, gain)


ATTACKS = (
    Attack("csa", ("api",), _similarity),
    Attack("aea", ("api",), _augmented),
    Attack("delta-cosine", ("api", "initial"), _delta_cosine),
    Attack("delta-margin", ("api", "initial"), _delta_margin),
    Attack("attack-p", ("released",), _population),
    Attack("rmia", ("released",), _calibrated_ratio),
    Attack("gradient-norm", ("released",), _gradient_norm),
    Attack("loss-trajectory", ("globals_", "released"), _trajectory),
    Attack("cosine-to-sum", ("globals_", "aggregates"), _cosine_to_sum),
    Attack("average-cosine", ("globals_", "updates"), _average_cosine),
    Attack("gradient-difference", ("globals_", "updates"), _gradient_difference),
    Attack("fed-mia", ("globals_", "updates"), _fed_mia),
    Attack("client-margin", ("globals_", "updates"), _client_margin),
)
"""Every attack of `fedvlm audit`, weakest vantage first."""
