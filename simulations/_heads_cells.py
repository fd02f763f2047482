"""Cells of the utility table that heads fill: which release, with which noise, and its scores.

Hyperparameters were chosen on seeds 100 and 101, which are in no table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from fedvlm.heads import (
    Candidates,
    LinearHead,
    hashed_rows,
    head_gradients,
    image_sums,
    mixed_scores,
    posterior_prototypes,
    release_steps,
)
from fedvlm.heads.contributions import COUNT_SHARE, DECLARED_SHARE, counted
from fedvlm.heads.linear import control_weight
from fedvlm.heads.posterior import Prior
from fedvlm.heads.whitening import unit_rows
from fedvlm.privacy.analytic import gaussian_epsilon
from simulations._heads_world import Floats, World, splits_of

CLIENTS = 10
LEVELS = (8.0, 3.0, 1.0)
CLIENT_LEVEL = ((10, 1e-3), (100, 1e-3), (300, 1e-3), (1_000, 1e-4), (3_000, 1e-4), (10_000, 1e-5))
SHARES = {"declared": DECLARED_SHARE, "inferred": COUNT_SHARE, "hashed": COUNT_SHARE}
HASHED = 4096


def noise_of(epsilon: float, delta: float) -> float:
    """Return σ of one Gaussian release of sensitivity 1, by its exact law."""
    found = brentq(lambda log: gaussian_epsilon(math.exp(-log), delta) - epsilon, -6, 8)
    return math.exp(found)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: What it is called.
        head: zero-shot, control, prototypes, head, gate or lora.
        epsilon: ε; infinite without noise.
        delta: δ.
        noised: Clients whose noise the sum was planned for; all ten add theirs. 1: each alone. 0:
            one noise for the whole sum.
        rows: declared, inferred or hashed; of LoRA at client level the `dp`.
        clients: At client level, the number of clients; 0 at example level.
    """

    name: str
    head: str
    epsilon: float = math.inf
    delta: float = 1e-3
    noised: int = 0
    rows: str = "declared"
    clients: int = 0

    @property
    def std(self) -> float:
        """σ over the sensitivity, on the sum that is released."""
        if math.isinf(self.epsilon):
            return 0.0
        sigma = noise_of(self.epsilon, self.delta)
        return sigma * math.sqrt(CLIENTS / self.noised if self.noised else 1)


def cells() -> list[Cell]:
    """Return every row that heads fill."""
    out = [Cell("zero-shot", "zero-shot"), Cell("public-only control", "control")]
    for head in ("prototypes", "head"):
        out.append(Cell(f"{head}, no DP", head))
        for delta in (1e-3, 1e-5):
            for epsilon in LEVELS:
                name = f"{head}, one noise, ε = {epsilon:g}, δ = {delta:g}"
                out.append(Cell(name, head, epsilon, delta))
        for delta, told in ((1e-3, ""), (1e-5, ", δ = 1e-05")):
            for epsilon in LEVELS:
                end = f"ε = {epsilon:g}{told}"
                out += [
                    Cell(f"{head}, planned for {n} of 10, {end}", head, epsilon, delta, n)
                    for n in (6, 8, 10)
                ]
                out.append(Cell(f"{head}, each alone, {end}", head, epsilon, delta, 1))
    for rows in ("inferred", "hashed"):
        out.append(Cell(f"prototypes, {rows} rows, no DP", "prototypes", rows=rows))
        out += [
            Cell(f"prototypes, {rows} rows, ε = {epsilon:g}", "prototypes", epsilon, rows=rows)
            for epsilon in LEVELS
        ]
    for clients, delta in CLIENT_LEVEL:
        name = f"client level, {clients:,} clients, ε = 8, δ = {delta:g}"
        out.append(Cell(name, "prototypes", 8.0, delta, clients=clients))
    for head, called in (("gate", "gate"), ("lora", "LoRA")):
        out.append(Cell(f"{called}, no DP", head))
        for delta in (1e-3, 1e-5):
            for epsilon in LEVELS:
                name = f"{called}, each alone, ε = {epsilon:g}, δ = {delta:g}"
                out.append(Cell(name, head, epsilon, delta, 1))
    for dp in ("client", "distributed"):
        name = f"LoRA, {dp} level, 10 clients, ε = 8, δ = 0.01"
        out.append(Cell(name, "lora", 8.0, 1e-2, rows=dp, clients=10))
    return out


def evaluate(world: World, cell: Cell, seed: int) -> dict[str, float]:
    """Return one of 100 by part, in percent."""
    if cell.head in ("gate", "lora"):
        return _trained(cell, seed)
    splits = splits_of(seed)
    rng = np.random.default_rng((seed, *cell.name.encode()))
    parts = {"test": splits.test, "ood": splits.ood, "withheld": splits.withheld}
    if cell.head == "zero-shot":
        scores_of = world.zero_shot
    elif cell.head == "control":
        scores_of = world.by_control
    elif cell.head == "head":
        scores_of = _head(world, cell, np.concatenate(splits.clients), rng)
    else:
        scores_of = _prototypes(world, cell, splits.clients, rng)
    return {name: world.score(part, scores_of) for name, part in parts.items()}


def _trained(cell: Cell, seed: int) -> dict[str, float]:
    """Return the scores of what is trained by local steps, in a federation."""
    private = math.isfinite(cell.epsilon)
    if cell.head == "gate":
        from simulations import _gate_cells

        found = _gate_cells.configuration(seed, cell.epsilon if private else None, cell.delta)
        return _gate_cells.evaluate_gate(found)
    from simulations._lora_cells import configuration, evaluate_lora

    dp = cell.rows if cell.clients else "example" if private else "none"
    return evaluate_lora(configuration(seed, dp, cell.epsilon, cell.delta))


def _rows(world: World, cell: Cell, seed: int) -> tuple[NDArray[np.int64], int]:
    count = len(world.texts)
    if cell.rows != "hashed":
        return np.arange(count), count
    return hashed_rows([str(i).encode() for i in range(count)], HASHED, seed), HASHED


def _prototypes(
    world: World, cell: Cell, clients: tuple[NDArray[np.int64], ...], rng: np.random.Generator
) -> Callable[..., Floats]:
    train = np.concatenate(clients)
    rows, size = _rows(world, cell, int(rng.integers(2**31)))
    std, share = cell.std, SHARES[cell.rows]
    if cell.clients:
        total, std = _client_sums(world, cell, train, rng)
    else:
        total = image_sums(world.features[train], rows[world.caption_of[train]], train, size, share)
    noised = (total + std * rng.standard_normal(total.shape))[rows]
    declared = np.isin(np.arange(len(world.texts)), world.caption_of[train])
    told = declared if cell.rows == "declared" else None
    prior = Prior(share=share)
    if cell.clients > CLIENTS:  # the public guess of images a caption
        prior = Prior(images=3.0 * max(1.0, _pairs(cell, train) / len(train)), share=share)
    found = posterior_prototypes(noised, std, world.directions, told, prior)

    def scores_of(part: NDArray[np.int64], gallery: NDArray[np.int64]) -> Floats:
        cosines = world.zero_shot(part, gallery)
        vectors, weights = found.vectors[gallery], found.zero_shot[gallery]
        return mixed_scores(cosines, world.features[part], vectors, weights)

    return scores_of


def _pairs(cell: Cell, train: NDArray[np.int64]) -> int:
    return max(len(train), round(2.5 * cell.clients))


def _client_sums(
    world: World, cell: Cell, train: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Floats, float]:
    """Return clipped clients' sums, and σ, in images; over 1,000 clients draw with replacement."""
    drawn = rng.permutation(train)
    if _pairs(cell, train) > len(train):
        drawn = rng.choice(train, _pairs(cell, train))
    parts = np.array_split(drawn, cell.clients)
    # Both from the public mean of what clients hold: rows of few images hardly overlap.
    clip = 0.7 * math.sqrt(len(drawn) / cell.clients)
    kept = 0.7
    total = np.zeros((len(world.texts), world.features.shape[1] + 1))
    terms = counted(world.features, SHARES[cell.rows])
    for part in parts:
        rows, numbers = np.unique(world.caption_of[part], return_inverse=True)
        one = np.zeros((len(rows), terms.shape[1]))
        np.add.at(one, numbers, terms[part])
        total[rows] += min(1.0, clip / float(np.linalg.norm(one))) * one
    return total / kept, cell.std * clip / kept


HEADS = {math.inf: LinearHead(50, 30.0)}
HEAD = LinearHead(10, 20.0)


def _head(
    world: World, cell: Cell, train: NDArray[np.int64], rng: np.random.Generator
) -> Callable[..., Floats]:
    head = HEADS.get(cell.epsilon, HEAD)
    texts = world.text_map(world.texts)
    captions, right = np.unique(world.caption_of[train], return_inverse=True)
    wanted = Candidates(texts[captions])
    std = cell.std * math.sqrt(head.steps) * head.clip_norm
    trained = release_steps(
        head,
        (world.features.shape[1], texts.shape[1]),
        len(train),
        lambda w: head_gradients(head, w, world.features[train], texts[captions][right], wanted),
        lambda total: total + std * rng.standard_normal(total.shape),
    )
    weight = control_weight(
        std / head.clip_norm,
        len(train),
        head.steps,
        head.learning_rate,
        head.momentum,
        head.temperature,
    )

    def scores_of(part: NDArray[np.int64], gallery: NDArray[np.int64]) -> Floats:
        own = head.temperature * (world.features[part] @ trained) @ texts[gallery].T
        own = own * np.isin(gallery, captions)  # what wasn't declared is the control's
        control = unit_rows(world.directions[gallery])
        known = 0.3 * world.zero_shot(part, gallery) + world.features[part] @ control.T
        return own + weight * known

    return scores_of
