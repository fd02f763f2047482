"""What a budget leaves of an adapter's gain, told before anybody trains.

Noise against signal, by formulas, and a verdict by where such ratios led on the embedded data
(`python -m simulations.privacy_utility`): a rough guide, and no promise.
"""

import math
from dataclasses import dataclass

from fedvlm.errors import ConfigError
from fedvlm.privacy.planning import plan

ADAPTERS = ("head", "prototypes", "lora")
_LEAST = 3
_MOST = 2048  # that one sum takes
_STEPS = {"head": 10, "prototypes": 1}
_LORA_PARAMETERS = 200_000
_MUCH, _SOME, _LITTLE = 20, 1.5, 0.6


@dataclass(frozen=True)
class Forecast:
    """Noise against signal of one adapter.

    Attributes:
        adapter: head, prototypes or lora.
        epsilon: ε over all releases.
        delta: δ.
        shared: σ over the sensitivity on the sum, where clients share the noise and as few as the
            protocol lets through are honest.
        alone: The same where each client noises for itself.
        signal: What a class's images add up to, in the same unit; in one score.
        ratio: Signal over the shared noise.
        ratio_alone: Signal over the noise of each client alone.
        verdict: What is expected.
        ratio_client: Signal over the noise of a trusted server that hides a whole client; of what
            is released once, so 0 for others than prototypes.
        verdict_client: What is expected then.
    """

    adapter: str
    epsilon: float
    delta: float
    shared: float
    alone: float
    signal: float
    ratio: float
    ratio_alone: float
    verdict: str
    ratio_client: float = 0.0
    verdict_client: str = ""


def least_honest(clients: int) -> int:
    """Return the honest clients that a sum of secure aggregation's default terms is sure of.

    Raises:
        ConfigError: Fewer than three clients, of which no sum is protected.
    """
    from secure.aggregation import Policy, integer_plan

    if clients < _LEAST:
        raise ConfigError(f"secure aggregation needs at least {_LEAST} clients; got {clients}")
    if clients > _MOST:  # cohorts of that size, by the same rule
        return clients * least_honest(_MOST) // _MOST
    policy = Policy(integer_plan(clients, 1))
    return policy.sharing(clients).quorum - policy.corrupt_members(clients)


def _verdict(ratio: float) -> str:
    # On the embedded data a ratio of 2.2 kept 40 % of the gain over the control, 1.7 a quarter,
    # 0.8 a twentieth and 0.3 nothing; 88, on 480 images of two classes, all of it. At client level
    # 0.14 (10 clients) and 0.4 (100) kept nothing, 1.2 (1,000) an eighth, 11 (10,000) two thirds.
    if ratio >= _MUCH:
        return "keeps nearly all of its gain"
    if ratio >= _SOME:
        return "is expected to keep part of its gain"
    if ratio >= _LITTLE:
        return "is expected to keep little of its gain"
    return "is expected to lose its gain; use the public-only control"


def forecast(
    adapter: str,
    *,
    clients: int,
    examples: float,
    classes: int,
    epsilon: float,
    delta: float,
    alike: float = 0.5,
) -> Forecast:
    """Forecast what is left of an adapter's gain.

    Args:
        adapter: One of `ADAPTERS`.
        clients: Clients n.
        examples: Mean images of a client.
        classes: Captions, or classes, that they are spread over.
        epsilon: ε over all releases.
        delta: δ.
        alike: Mean cosine of an image with its class's prototype, a guess.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> found = forecast(
        ...     "prototypes", clients=10, examples=250, classes=1200, epsilon=8.0, delta=1e-3
        ... )
        >>> found.verdict
        'is expected to keep part of its gain'
    """
    if adapter not in ADAPTERS:
        raise ConfigError(f"adapter must be one of {', '.join(ADAPTERS)}; got {adapter!r}")
    if min(clients, examples, classes) < 1 or not 0 < alike <= 1:
        raise ConfigError("clients, examples and classes must be at least 1, and alike in (0, 1]")
    steps = _STEPS.get(adapter, 60)
    planned = plan(delta=delta, sample_rate=1.0, steps=steps, target_epsilon=epsilon)
    one = planned.noise_multiplier
    shared = one * math.sqrt(clients / least_honest(clients))
    alone = one * math.sqrt(clients)
    total = clients * examples
    if adapter == "lora":
        # Clipped gradients that all point one way would add up to `total`; noise has d directions.
        signal, shared, alone = (
            alike * total / math.sqrt(steps),
            shared * math.sqrt(_LORA_PARAMETERS),
            alone * math.sqrt(_LORA_PARAMETERS),
        )
        shared = alone  # local steps are no sum: noise can't be shared
    else:
        # A score reads one direction, in which all of a class's images add up, step by step.
        signal = alike * total / classes * math.sqrt(steps)
        signal *= 1.0 if adapter == "prototypes" else 0.9
    # Rows of n images are √n long, and so is what a client must be clipped to.
    client = signal / (one * math.sqrt(examples)) if adapter == "prototypes" else 0.0
    return Forecast(
        adapter,
        planned.epsilon,
        delta,
        shared,
        alone,
        signal,
        signal / shared,
        signal / alone,
        _verdict(signal / shared),
        client,
        _verdict(client),
    )


@dataclass(frozen=True)
class ClientForecast:
    """Noise against signal where a whole client is hidden in every round of a trained adapter.

    Attributes:
        noise_multiplier: σ over the clip norm on a round's sum.
        ratio: Length that the clients' clipped updates can add up to over all rounds, all pointing
            half one way, over the length of the noise in all coordinates.
        verdict: What is expected.
    """

    noise_multiplier: float
    ratio: float
    verdict: str

    @property
    def hopeful(self) -> bool:
        """Whether part of the gain is expected to be left."""
        return self.ratio >= _SOME


def forecast_clients(
    *, parameters: int, clients: int, rounds: int, fraction: float, epsilon: float, delta: float
) -> ClientForecast:
    """Forecast what client-level DP leaves of an adapter that is trained over several rounds.

    Args:
        parameters: Coordinates d of the adapter.
        clients: Clients n.
        rounds: Rounds T, each a release.
        fraction: Share of the clients in a round.
        epsilon: ε over all rounds.
        delta: δ.

    Raises:
        ConfigError: A value is out of range, or no noise reaches ε.

    Example:
        >>> few = forecast_clients(
        ...     parameters=194_048, clients=10, rounds=6, fraction=1.0, epsilon=8.0, delta=1e-5
        ... )
        >>> few.hopeful
        False
    """
    if min(parameters, clients) < 1:
        raise ConfigError("parameters and clients must be at least 1")
    planned = plan(delta=delta, sample_rate=fraction, steps=rounds, target_epsilon=epsilon)
    z = planned.noise_multiplier
    # T rounds of q·n updates of length C, against √T·z·C in each of d directions.
    signal = 0.5 * rounds * fraction * clients
    ratio = signal / (math.sqrt(rounds * parameters) * z)
    return ClientForecast(z, ratio, _verdict(ratio))
