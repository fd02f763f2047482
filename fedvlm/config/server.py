"""Whom the server asks, how long it waits, and what it makes of the answers."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting

SHARES = ("both", "A", "B", "alternate")
RULES = ("average", "flexlora", "fedex")
SCORES = ("none", "last", "each")
OPTIMIZERS = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


@dataclass(frozen=True)
class ServerConfig(Section):
    """The rounds as the server holds them."""

    table: ClassVar[str] = "server"

    fraction: float = setting(
        1.0, "Share of the clients asked in each round.", low=0, high=1, above=True
    )
    share: str = setting(
        "both",
        "Which LoRA factors are averaged: both; A or B (the other one never leaves its node); or "
        "alternate (B in odd rounds, A in even ones, the other one frozen).",
        choices=SHARES,
    )
    rule: str = setting(
        "average",
        "How they are: average (factor by factor), flexlora (the product, cut back to the rank) "
        "or fedex (factor by factor, and what that misses of the product goes to the base "
        "weights).",
        choices=RULES,
    )
    site_ranks: str = setting(
        "",
        "Ranks of the clients by number, separated by commas, for flexlora; empty where all have "
        "the adapter's rank. LoRA's scale is adapter.alpha / adapter.rank for all.",
    )
    sketch: int = setting(
        0,
        "Width of the sketch by which products are summed, 0 for twice the rank.",
        low=0,
        high=4096,
    )
    optimizer: str = setting(
        "fedavg",
        "What the server makes of the mean update.",
        choices=OPTIMIZERS,
        flat="server_optimizer",
        server=True,
    )
    learning_rate: float = setting(
        1.0,
        "The server's rate; ignored by fedavg.",
        low=0,
        high=1e6,
        above=True,
        flat="server_learning_rate",
        server=True,
    )
    momentum: float = setting(
        0.9,
        "Momentum of fedavgm, and of a linear head's sums; nodes that score a head are told.",
        low=0,
        high=1,
        below=True,
        flat="server_momentum",
    )
    node_scores: str = setting(
        "none",
        "Whether nodes hold out a part of their pairs, by image content, and have one accuracy "
        "over all of them summed as updates are: none, last (after the last round) or each "
        "(round). Only without DP: no noise covers such a sum.",
        choices=SCORES,
    )
    workers: int = setting(
        0,
        "Clients that train at the same time in a simulation, 0 for one a core. Does not change "
        "a result.",
        low=0,
        high=4096,
        server=True,
    )
    round_timeout: float = setting(
        600.0,
        "Seconds that clients have to train in a round; who is later is left out.",
        low=0,
        high=1e6,
        above=True,
        server=True,
    )
    trip_timeout: float = setting(
        120.0,
        "Seconds that they have for each further message of a protection.",
        low=0,
        high=1e6,
        above=True,
        server=True,
    )
    join_timeout: float = setting(
        60.0,
        "Seconds to wait for all nodes before the first round.",
        low=0,
        high=1e6,
        server=True,
    )
