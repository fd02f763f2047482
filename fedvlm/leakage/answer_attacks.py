"""Membership attacks on models that answer, by vantage."""

import math

import numpy as np
from numpy.typing import NDArray

from fedvlm.leakage import scores as formulas
from fedvlm.leakage import text_scores as text
from fedvlm.leakage.answer_probe import ORDERS, AnswerProbe
from fedvlm.leakage.attacks import ATTACKS, Attack, by_client
from fedvlm.leakage.probe import Candidates
from fedvlm.leakage.vantage import View

Array = NDArray[np.float64]

_BY_GRADIENT = (
    *("gradient-norm", "cosine-to-sum", "average-cosine", "gradient-difference", "fed-mia"),
)


def _likelihood(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    return probe.confidence(view.api, who.indices)


def _min_k(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    return text.min_k(probe.statistics(view.api, who.indices).log_probabilities)


def _min_k_plus_plus(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    found = probe.statistics(view.api, who.indices)
    return text.min_k_plus_plus(found.log_probabilities, found.means, found.deviations)


def _zlib(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    answers = [probe.task.encoded.answers[int(row)] for row in who.indices]
    return text.zlib_ratio(probe.statistics(view.api, who.indices).log_probabilities, answers)


def _max_renyi(order: float) -> Attack:
    def score(view: View, probe: AnswerProbe, who: Candidates) -> Array:
        return text.max_renyi(probe.statistics(view.api, who.indices).entropies[order])

    name = "inf" if order == math.inf else f"{order:g}"
    return Attack(f"max-renyi-{name}", ("api",), score)  # pyright: ignore[reportArgumentType]


def _delta_likelihood(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    before = probe.confidence(view.initial, who.indices)
    return probe.confidence(view.api, who.indices) - before


def _population(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    released = view.need("released", "attack-p")
    losses = -probe.confidence(released, who.indices)
    return formulas.attack_p(losses, -probe.confidence(released, probe.population))


def _calibrated_ratio(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    """RMIA by token likelihoods, with the public base model as its only reference."""
    released = view.need("released", "rmia")
    pair = [np.exp(probe.confidence(a, who.indices)) for a in (released, view.initial)]
    base = [np.exp(probe.confidence(a, probe.population)) for a in (released, view.initial)]
    return formulas.rmia_offline(pair[0], pair[1], base[0], base[1])


def _trajectory(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    seen = [*view.need("globals_", "loss-trajectory"), view.need("released", "loss-trajectory")]
    return formulas.loss_trajectory(
        np.stack([probe.confidence(adapter, who.indices) for adapter in seen])
    )


def _client_gain(view: View, probe: AnswerProbe, who: Candidates) -> Array:
    """Mean gain in likelihood from the round's global adapter to the client's own."""
    updates = view.need("updates", "client-gain")
    starts = view.need("globals_", "client-gain")

    def gain(client: int, at: NDArray[np.bool_]) -> Array:
        rows = who.indices[at]
        rounds = [
            probe.confidence(start + update[client], rows) - probe.confidence(start, rows)
            for start, update in zip(starts, updates, strict=True)
        ]
        return np.stack(rounds).mean(axis=0)

    return by_client(who, gain)


# pyright: reportArgumentType=false
ANSWER_ATTACKS = (
    Attack("answer-likelihood", ("api",), _likelihood),
    Attack("min-k", ("api",), _min_k),
    Attack("min-k++", ("api",), _min_k_plus_plus),
    *(_max_renyi(order) for order in ORDERS),
    Attack("zlib", ("api",), _zlib),
    Attack("delta-likelihood", ("api", "initial"), _delta_likelihood),
    Attack("attack-p", ("released",), _population),
    Attack("rmia", ("released",), _calibrated_ratio),
    Attack("loss-trajectory", ("globals_", "released"), _trajectory),
    *(attack for attack in ATTACKS if attack.name in _BY_GRADIENT),
    Attack("client-gain", ("globals_", "updates"), _client_gain),
)
"""Every attack of an audit of answers, weakest vantage first; those by gradients are shared."""
