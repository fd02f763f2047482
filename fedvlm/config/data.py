"""Whose pairs a run is about, and how a simulation deals them out."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting


@dataclass(frozen=True)
class DataConfig(Section):
    """The data; a node of a deployment has its own instead, by its `node.toml`."""

    table: ClassVar[str] = "data"

    source: str = setting(
        "emoji",
        '"emoji", the path of a folder with images and captions, or "none" for a server without '
        "data. Of a path nodes are told nothing.",
        flat="data",
    )
    clients: int = setting(10, "Number of clients.", low=2, high=100_000)
    partition: str = setting(
        "designer-topic",
        "How a simulation deals the pairs out.",
        choices=("designer-topic", "dirichlet", "iid", "quantity"),
    )
    alpha: float = setting(
        0.3,
        "Concentration of the partition's Dirichlet draws; small is skewed.",
        low=0,
        high=1e6,
        above=True,
    )
    membership: str = setting(
        "all",
        "Which images are used: all, or half: each is a member by a fair coin, for audits.",
        choices=("all", "half"),
    )
