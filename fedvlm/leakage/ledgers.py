"""The ledgers that a run kept, and its claim with the whole privacy profile behind it."""

import json
from dataclasses import replace
from pathlib import Path

from fedvlm.config import Config
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.result import Result
from fedvlm.leakage.units import Claim
from fedvlm.privacy.ledger import Ledger
from fedvlm.privacy.profile import privacy_profile


def ledgers_of(folder: Path, config: Config) -> list[Ledger]:
    """Return the ledgers in a run's checkpoint: one, or one a client under example-level DP.

    Raises:
        ConfigError: There is no checkpoint, or it is of another configuration.
        IntegrityError: It has no ledger, or one that can't be read.
    """
    schema = str(Result.load(folder).adapter["schema"])
    state = Checkpoint.load(folder, config, schema).state
    try:
        text = str(state["privacy"])
        if config.privacy.dp == "example" and not config.privacy.shares_noise:
            # By node; ids of nodes may be any numbers.
            return [Ledger.from_json(one) for one in json.loads(text).values()]
        if config.privacy.dp == "client":
            text = json.loads(text)["ledger"]
        return [Ledger.from_json(text)]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the checkpoint of {folder} holds no ledger that can be read"
        ) from error


def profile_claim(folder: Path, config: Config, claim: Claim) -> Claim:
    """Return a run's claim with the privacy profile that its ledger stands for.

    Where each client has a ledger, that of the client that spent most: it claims least.

    Raises:
        ConfigError: No client has spent anything.
        IntegrityError: No ledger can be read.
    """
    spent = [one for one in ledgers_of(folder, config) if one.releases]
    if not spent:
        raise ConfigError(f"the ledger of {folder} is empty: it claims nothing that can be tested")
    most = max(spent, key=lambda one: one.spent.value)
    return replace(claim, profile=privacy_profile(most.history))
