"""The floor: what a node's owner asks for at least, whatever the other side wishes.

`Terms` are a wish: they come from Flower's run config, which the server writes. A `Floor` is the
owner's, from a file of its own. Nothing makes the one out of the other.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from fedvlm.config.adapter import KINDS
from fedvlm.config.mitigation import KINDS as MITIGATIONS
from fedvlm.config.mitigation import LOSS_WEIGHTS
from fedvlm.config.whole import Config
from fedvlm.errors import ConfigError, ProtocolError

PROTECTIONS = ("plain", "he", "secagg", "secagg-active")
"""Ways of summing, from what hides least of an update from the server to what hides most."""
_USUAL_DELTA = 1e-5
PRIVACIES = ("none", "example", "shared", "client", "distributed")

REFUSALS = {
    "protection": 1201,
    "noise": 1202,
    "rounds": 1203,
    "adapter": 1204,
    "model": 1205,
    "cohort": 1206,
    "budget": 1207,
    "data": 1208,
    "terms": 1209,
    "node": 1210,
    "fedvlm": 1211,
    "torch": 1212,
    "transformers": 1213,
    "peft": 1214,
    "numpy": 1215,
    "pillow": 1216,
    "tokenizer": 1217,
    "schema": 1218,
    "scores": 1219,
    "mitigation": 1220,
}
"""Number of each code that a node refuses with. `protection`, `noise`, `rounds`, `adapter`,
`model`, `cohort`, `scores`: the run asks for less than the floor; `mitigation`: it asks the node to
train with what the floor doesn't name, or what can't be had for its model and data; `budget`: what
may be told of the data has been told; `data`: the run names data, a model or a list that isn't the
node's to open; `terms`: the run's configuration is none; `node`: anything else, which the node's
own log tells. The others say what differs between the node and the server: a library's version, the
tokenizer, the adapter's schema; `model` says so too, where the floor names no model."""

DIFFERENCES = {
    "fedvlm": "another version of fedvlm",
    "torch": "another release of torch",
    "transformers": "another release of transformers",
    "peft": "another release of peft",
    "numpy": "another major version of numpy",
    "pillow": "another major version of pillow",
    "model": "another base model",
    "tokenizer": "another tokenizer",
    "schema": "an adapter of another shape",
}
"""What the codes of a difference between node and server mean, for the operator."""


class RefusedError(ProtocolError):
    """A node refuses; the server learns the code alone, and the message stays in the node's log.

    Args:
        code: A key of `REFUSALS`.
        text: What was asked, what the floor is, and who can mend it.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Terms:
    """What a run asks of a node.

    Attributes:
        protect: How updates are summed.
        dp: Who adds noise.
        epsilon: What the noise is solved for, over all rounds; infinite without noise.
        delta: δ that it holds at.
        rounds: Rounds of the run.
        adapter: Kind of adapter.
        targets: Modules that LoRA trains, a regular expression.
        cohort: Clients that are asked in a round.
        simulated_noise: Whether noise follows from the experiment's seed.
        scores: Whether nodes are asked to score adapters on what they hold out.
        mitigations: What nodes are asked to train with, by a floor's names.
        attribute: Column of the node's table that an adversary reads; empty for none.
    """

    protect: str
    dp: str
    epsilon: float
    delta: float
    rounds: int
    adapter: str
    targets: str
    cohort: int
    simulated_noise: bool
    scores: bool = False
    mitigations: tuple[str, ...] = ()
    attribute: str = ""

    @classmethod
    def of(cls, config: Config) -> "Terms":
        """Return the terms of a run's configuration."""
        return cls(
            protect=config.protection.protect,
            dp="shared"
            if config.privacy.dp == "example" and config.privacy.shares_noise
            else config.privacy.dp,
            epsilon=math.inf if config.privacy.dp == "none" else config.privacy.epsilon,
            delta=0.0 if config.privacy.dp == "none" else config.privacy.delta,
            rounds=config.training.rounds,
            adapter=config.adapter.kind,
            targets=config.adapter.targets if config.adapter.spec.is_lora else "",
            cohort=config.cohort,
            simulated_noise=config.privacy.simulated_noise and config.privacy.dp != "none",
            scores=config.server.node_scores != "none",
            mitigations=config.mitigation.asked,
            attribute=config.mitigation.attribute,
        )


@dataclass(frozen=True)
class Floor:
    """The least that a node's owner asks for; the defaults ask for nothing.

    Attributes:
        protect: Least protection of a sum: plain, he, secagg or secagg-active.
        dp: Noise that is accepted. `shared` is example-level noise of which a client adds a share
            alone, as `distributed` is at client level: others' honesty is needed beside its own.
            `client` is noise of the *server's*, which the node can't see
            being added: it is accepted only where it is named here.
        epsilon: Most ε, in all and for ever, that the node tells of its data; infinite for no
            limit. With one, a run without noise is refused.
        delta: Most δ; 1e-5 where ε is limited and this isn't, as a δ near 1 allows any ε.
        rounds: Rounds that the node answers in all, over every run; 0 for no limit.
        adapters: Kinds of adapter that it trains.
        targets: Modules that LoRA may train, as regular expressions that a run must name
            literally; empty for any.
        model: Hash of the weights of the base model; empty for any.
        min_clients: Fewest clients asked in a round, and under secure aggregation in a sum.
        scores: Whether a run may sum up how well its adapter does on what the node holds out. No
            noise covers such a sum: never where ε is limited.
        mitigations: What a run may have the node train with: kinds of `mitigation.kind`, and
            `loss-weights`; all by default, each being code of this library that adds a term to
            the node's own loss, or weighs it.
        attributes: Columns of the node's table that an adversary may read. None by default: no
            other training reads them, and an update that was made with one can tell of it.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> Floor(protect="secagg").allows(Terms.of(Config()))
        False
    """

    protect: str = "plain"
    dp: tuple[str, ...] = ()
    epsilon: float = math.inf
    delta: float = 1.0
    rounds: int = 0
    adapters: tuple[str, ...] = KINDS
    targets: tuple[str, ...] = ()
    model: str = ""
    min_clients: int = 1
    scores: bool = True
    mitigations: tuple[str, ...] = (*MITIGATIONS, LOSS_WEIGHTS)
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.dp:
            told = ("example", "shared", "distributed") if self.bounded else PRIVACIES
            object.__setattr__(self, "dp", told)
        if self.bounded and self.delta == 1:
            object.__setattr__(self, "delta", _USUAL_DELTA)
        for key, value, known in (
            ("protect", (self.protect,), PROTECTIONS),
            ("dp", self.dp, PRIVACIES),
            ("adapters", self.adapters, KINDS),
        ):
            wrong = [each for each in value if each not in known]
            if wrong or not value:
                got = repr(wrong[0]) if wrong else "none"
                raise ConfigError(f"floor.{key} takes {', '.join(known)}; got {got}")
        for each in self.mitigations:  # may be empty, which takes part in none
            if each not in (*MITIGATIONS, LOSS_WEIGHTS):
                known = ", ".join((*MITIGATIONS, LOSS_WEIGHTS))
                raise ConfigError(f"floor.mitigations takes {known}; got {each!r}")
        if not self.epsilon > 0:
            raise ConfigError(f"floor.epsilon must be above 0; got {self.epsilon}")
        if not 0 < self.delta <= 1:
            raise ConfigError(f"floor.delta must be in (0, 1]; got {self.delta}")
        if self.bounded and "none" in self.dp:
            raise ConfigError(
                "floor.dp accepts runs without noise (none), for which no floor.epsilon can hold; "
                "take one of the two out"
            )
        for key, least in (("rounds", 0), ("min_clients", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"floor.{key} must be at least {least}; got {getattr(self, key)}")

    @property
    def bounded(self) -> bool:
        """Whether ε is limited."""
        return math.isfinite(self.epsilon)

    def allows(self, terms: Terms) -> bool:
        """Return whether terms meet the floor."""
        try:
            self.check(terms)
        except RefusedError:
            return False
        return True

    def check(self, terms: Terms) -> None:
        """Refuse terms that are below the floor.

        Args:
            terms: What the run asks for.

        Raises:
            RefusedError: Naming the first term that isn't met.
        """
        if terms.protect not in PROTECTIONS or PROTECTIONS.index(terms.protect) < PROTECTIONS.index(
            self.protect
        ):
            raise RefusedError(
                "protection",
                f"the run sums by protect = {terms.protect!r}, the floor is {self.protect!r}",
            )
        if terms.dp not in self.dp:
            raise RefusedError(
                "noise", f"the run has dp = {terms.dp!r}, the floor accepts {', '.join(self.dp)}"
            )
        # Written so that a NaN is refused.
        if self.bounded and not terms.epsilon <= self.epsilon:
            raise RefusedError(
                "noise", f"the run's epsilon is {terms.epsilon:g}, the floor's {self.epsilon:g}"
            )
        if terms.dp != "none" and not terms.delta <= self.delta:
            raise RefusedError(
                "noise", f"the run's delta is {terms.delta:g}, the floor's {self.delta:g}"
            )
        if self.rounds and not terms.rounds <= self.rounds:
            raise RefusedError(
                "rounds", f"the run has {terms.rounds} rounds, the floor is {self.rounds}"
            )
        if terms.adapter not in self.adapters:
            raise RefusedError(
                "adapter",
                f"the run trains {terms.adapter!r}, the floor accepts {', '.join(self.adapters)}",
            )
        if terms.targets and self.targets and terms.targets not in self.targets:
            raise RefusedError(
                "adapter", f"the run trains {terms.targets!r}, which the floor doesn't name"
            )
        if not terms.cohort >= self.min_clients:
            raise RefusedError(
                "cohort",
                f"the run asks {terms.cohort} clients a round, the floor is {self.min_clients}",
            )
        if terms.scores and (self.bounded or not self.scores):
            raise RefusedError(
                "scores",
                "the run asks how well adapters do on what this node holds out, and the floor "
                + ("limits ε, which no noise of a score keeps" if self.bounded else "allows none"),
            )

        self._check_mitigations(terms)

    def _check_mitigations(self, terms: Terms) -> None:
        for each in terms.mitigations:
            if each not in self.mitigations:
                raise RefusedError(
                    "mitigation",
                    f"the run has nodes train with {each}, which the floor doesn't name",
                )
        if terms.attribute and terms.attribute not in self.attributes:
            raise RefusedError(
                "mitigation",
                f"the run's adversary reads the column {terms.attribute!r}, which floor.attributes "
                "doesn't name",
            )

    def check_model(self, weights: str) -> None:
        """Refuse a base model with other weights than the floor names.

        Args:
            weights: `fedvlm.models.weights_hash` of the model that was loaded.

        Raises:
            RefusedError: The hash is another.
        """
        if self.model and weights != self.model:
            raise RefusedError(
                "model",
                f"the base model's weights hash to {weights[:12]}…, the floor names "
                f"{self.model[:12]}…",
            )


def floor_from(settings: dict[str, Any]) -> Floor:
    """Build a floor from the table [floor] of a node's file; its keys have been checked."""
    kinds = {field.name: type(getattr(Floor(), field.name)) for field in fields(Floor)}
    out: dict[str, Any] = {}
    for key, value in settings.items():
        kind = kinds[key]
        if kind is tuple:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ConfigError(f"floor.{key} is a list of texts; got {value!r}")
            out[key] = tuple(value)
        elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            out[key] = float(value)
        elif type(value) is kind:
            out[key] = value
        else:
            raise ConfigError(f"floor.{key} must be of type {kind.__name__}; got {value!r}")
    return Floor(**out)
