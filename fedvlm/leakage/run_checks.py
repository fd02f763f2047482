"""Does a run do what it states? Checks of its transcript, and what they can't see, in numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvlm.config import Config
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.result import Result
from fedvlm.leakage.draws import draws_p_value, least_share, rounds_to_tell
from fedvlm.leakage.ledgers import ledgers_of
from fedvlm.leakage.noise_checks import (
    excess_p_value,
    law_p_value,
    least_ratio,
    repeats_p_value,
    size_p_value,
    told_offset,
)
from fedvlm.leakage.recount import epsilon_at_least
from fedvlm.leakage.released import Released, not_released, read_released, stated
from fedvlm.leakage.vantage import Record

_TESTS = 5  # of chance; the ledger's are arithmetic


@dataclass(frozen=True)
class Check:
    """One thing that a run states, held against its transcript.

    Attributes:
        name: What was checked.
        violated: Whether the run isn't what it states.
        found: What was seen, in words.
        unseen: What this check would not notice, in words and numbers.
        p_value: Chance of seeing this, or worse, in a run that is what it states; None where
            arithmetic decides.
    """

    name: str
    violated: bool
    found: str
    unseen: str
    p_value: float | None = None

    def __str__(self) -> str:
        return f"{self.name}: {'VIOLATED, ' if self.violated else ''}{self.found}"


@dataclass(frozen=True)
class RunChecks:
    """What a run's transcript says of its mechanism.

    Attributes:
        checks: Those that could be made.
        unchecked: What could not be checked, and why, in words.
        confidence: Chance that a run that is what it states passes them all.
    """

    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]
    confidence: float

    @property
    def violated(self) -> bool:
        """Whether any check failed."""
        return any(check.violated for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the checks as JSON takes them."""
        return {
            "checks": [vars(check) for check in self.checks],
            "not_checked": list(self.unchecked),
            "confidence": self.confidence,
            "violated": self.violated,
        }


def _by_chance(name: str, p_value: float, share: float, found: str, unseen: str) -> Check:
    return Check(name, p_value <= share, f"{found} (p = {p_value:.2g})", unseen, p_value)


def noise_checks(released: Released, share: float) -> list[Check]:
    """Check the noise of released sums.

    Args:
        released: What was released, and what is stated of it.
        share: Chance that a check fails for a run that is what it states, in (0, 1).

    Raises:
        IntegrityError: A sum isn't finite.
    """
    exact = released.sums is not None
    noise = released.totals - released.sums if released.sums is not None else released.totals
    noise = noise / released.stds[:, None]
    if not np.isfinite(noise).all():
        raise IntegrityError("a released sum isn't finite")
    rounds, size = noise.shape
    ratio = least_ratio(size, share / (17 * rounds))
    p, at = size_p_value(noise)
    level = float(np.sqrt((noise[at - 1] ** 2).mean()))
    unseen = (
        f"a round with more than {ratio:.3f} of its noise, or less than that in under an eighth of "
        "the coordinates"
        if exact
        else f"noise of more than {ratio:.3f} of the stated, and less than that in a round whose "
        "updates are long beside the noise: single updates weren't seen"
    )
    told = f"least in round {at}, {level:.3f} of the stated"
    out = [_by_chance("noise by round and place", p, share, told, unseen)]
    if exact:
        signals = [one for one in (released.sums, released.cut) if one is not None]
        p, at = excess_p_value(noise, *(one / released.stds[:, None] for one in signals))
        level = float(np.sqrt((noise[at - 1] ** 2).mean()))
        told = f"what is left of round {at} is {level:.3f} of the stated noise"
        reach = told_offset(size, share / rounds)
        unseen = (
            f"a sum that is off by less than {reach:.2f} standard deviations in each place, along "
            "neither what was sent nor what clipping took away"
        )
        out.append(_by_chance("sum of clipped updates", p, share, told, unseen))
    if rounds > 1:
        p, at = repeats_p_value(noise)
        least = 1 - least_ratio(size - rounds + 1, share / rounds) ** 2
        out.append(
            _by_chance(
                "noise between rounds",
                p,
                share,
                f"most like that of earlier rounds in round {at}",
                f"noise that shares less than {least:.1%} of its variance with earlier rounds; "
                "noise that is the same in another run: a stream whose secret never changes "
                "but goes on from round to round",
            )
        )
    p = law_p_value(noise, exact)
    out.append(
        _by_chance(
            "law of the noise",
            p,
            share,
            f"{(np.abs(noise) > 2).mean():.2%} of {noise.size} values beyond two standard "
            "deviations, 4.55 % expected" + ("" if exact else " at the least"),
            f"a law whose distribution function is within {1.36 / noise.size**0.5:.1g} of the "
            "normal one, such as a generator that its owner can predict"
            if exact
            else "a law with tails as heavy as the normal one's, and a generator that its owner "
            "can predict",
        )
    )
    return out


def draw_check(released: Released, share: float) -> Check | str:
    """Check who was drawn, or say in words why not."""
    if released.drawn is None:
        return "draws: who was drawn isn't in the transcript"
    rate = released.sample_rate
    rounds, clients = released.drawn.shape
    if rate == 1:
        return "draws: all clients take part in each round, as stated"
    p, what = draws_p_value(released.drawn, rate)
    needed = rounds_to_tell(clients, rate, share)
    one = (
        f"one client that is always drawn (told after {needed} rounds, this run has {rounds})"
        if needed > rounds
        else f"one client that is drawn in fewer than {needed} rounds more than by its coins"
    )
    most = least_share(rounds, clients, rate, share)
    unseen = f"{one}; all drawn with chance under {most:.3f} for a stated {rate:.3f}"
    return _by_chance("draws of clients", p, share, f"most suspicious: {what}", unseen)


def ledger_checks(folder: Path, config: Config, result: Result) -> list[Check | str]:
    """Check the number of releases on the ledger, and ε by an accountant of its own."""
    record = Record.read(folder)
    rounds = len(record.adapters) - 1
    per_client = config.privacy.dp == "example" and not config.privacy.shares_noise
    steps, asked = int(stated(result, "steps_per_round")) if per_client else 1, rounds
    if per_client and record.updates is not None:
        asked = int(record.heard.sum(axis=0).max())
    elif per_client and config.server.fraction < 1:
        return ["ledger: which clients were asked in which round isn't in the transcript"]
    out: list[Check | str] = []
    try:
        kept = max((one.releases for one in ledgers_of(folder, config)), default=0)
    except (ConfigError, IntegrityError) as error:
        out.append(f"ledger: {error}")
    else:
        out.append(
            Check(
                "releases on the ledger",
                kept < steps * asked,
                f"{kept} for {steps * asked} that the transcript shows",
                "answers that left no trace in this folder",
            )
        )
    z, rate = stated(result, "noise_multiplier"), stated(result, "sample_rate", 1.0)
    delta, claimed = stated(result, "delta"), stated(result, "epsilon")
    least = epsilon_at_least(z, rate, steps * asked, delta)
    law = "Gaussian noise of the same size" if config.privacy.shares_noise else "its noise"
    out.append(
        Check(
            "epsilon counted again",
            claimed < least,
            f"{least:.3f} at the least by {law} over {steps * asked} releases, "
            f"{claimed:.3f} claimed",
            f"a claim that is wrong by less than {max(0.0, claimed - least):.3f}",
        )
    )
    return out


def check_run(
    folder: Path, config: Config, result: Result, alpha: float = 0.05
) -> RunChecks | None:
    """Hold a private run's transcript against what the run states.

    Args:
        folder: The run's folder, with its transcript and checkpoint.
        config: The run's configuration.
        result: The run's result.
        alpha: Chance that a run that is what it states fails a check, in (0, 1).

    Returns:
        The checks; None where the run states no privacy.

    Guarantees:
        A run whose noise is independent between rounds and coordinates, normal, and no smaller
        than stated, whose draws are independent coins no larger than stated, and whose sums are of
        clipped updates, fails with chance at most α, whatever its clients send. Skellam's noise is
        normal only nearly; so is that chance.

    Raises:
        ConfigError: The run kept no transcript.
        IntegrityError: Transcript and result don't fit.
    """
    if not result.privacy or config.privacy.dp == "none":
        return None
    share = alpha / _TESTS
    found: list[Check | str] = []
    reason = not_released(config)
    if reason:
        found.append(reason)
    else:
        released = read_released(folder, config, result)
        found += noise_checks(released, share)
        found.append(draw_check(released, share))
    found += ledger_checks(folder, config, result)
    return RunChecks(
        tuple(one for one in found if isinstance(one, Check)),
        tuple(one for one in found if isinstance(one, str)),
        1 - alpha,
    )
