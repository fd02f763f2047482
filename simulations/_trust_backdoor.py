"""One of ten clients plants a patch: what it achieves under each protection."""

from pathlib import Path
from typing import Any

from flwr.app import Context as FlowerContext
from flwr.app import Message

from fedvlm.config import Config, config_from
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import ClientFn
from fedvlm.federation.task import Task, standing_in
from fedvlm.federation.terms import settings_of
from fedvlm.trust.audit import contexts_of
from fedvlm.trust.columns_robustness import Test
from fedvlm.trust.columns_safety import TARGET, Safety
from fedvlm.trust.context import DEFAULT_SIZES
from fedvlm.trust.poison import poisoned
from fedvlm.trust.subject import Subject
from simulations._trust_federate import federate
from simulations._trust_rows import BASE, PROTECTIONS

ATTACKER = 0
STAMPED = 20  # of its about 75 to 125 pairs: the rest are what a stamp is contrasted with
EFFORT = 4  # times the others' epochs: the attacker trains as long as it likes
_LARGE = 1e4  # ε so large that the noise is next to nothing: what is left is the norm bound

_BOOST = 10.0  # as many as clients: unchecked, the mean of all is then the attacker's model

ATTACKS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "plain": ("plain", _BOOST, {}),
    "norm-bound": ("client", _BOOST, {"epsilon": _LARGE}),
    "secagg": ("secagg", _BOOST, {}),
    "client": ("client", _BOOST, {}),
    "example-8": ("example-8", 1.0, {}),
    "plain-data-alone": ("plain", 1.0, {}),
    "secagg-active": ("secagg-active", _BOOST, {}),
    "norm-bound-data-alone": ("client", 1.0, {"epsilon": _LARGE}),
}
"""Attack → row of protections, boost of the attacker's update, what it changes.

Under example-level DP the update is a released one and isn't boosted; an attacker who leaves the
protocol there is that of the plain row.
"""


def attack_configuration(name: str, seed: int) -> Config:
    """Return the federation of an attack: ten clients, who share the pairs of the other rows."""
    row, _, more = ATTACKS[name]
    settings = {
        **BASE,
        **PROTECTIONS[row],
        "clients": 10,
        "seed": seed,
        **more,
    }
    if "dp" in PROTECTIONS[row]:
        settings["simulated_noise"] = True
    return config_from(settings)


def attacker(boost: float) -> ClientFn:
    """Return what the nodes run: the client app, and an attacker's code on one of them.

    The attacker follows the protocol and its own floor. Under example-level DP it noises as told;
    one that doesn't is the plain row's, which no other party could notice.
    """
    made: dict[int, Task] = {}

    def change(task: Task) -> Task:
        if id(task.model) not in made:
            made[id(task.model)] = poisoned(task, ATTACKER, TARGET, STAMPED, boost, EFFORT)
        return made[id(task.model)]

    def client(message: Message, context: FlowerContext) -> Message:
        train = message.metadata.message_type.partition(".")[0] == "train"
        if not train or context.node_config.get("partition-id") != ATTACKER:
            return app(message, context)
        with standing_in(settings_of(context), change):
            return app(message, context)

    return client


def run_attack(
    name: str, seed: int, folder: Path, untouched: Subject | None = None
) -> dict[str, Any]:
    """Run or resume one attack, and measure its success and what clean images lose."""
    federate(attack_configuration(name, seed), folder, attacker(ATTACKS[name][1]))
    before, after, _ = contexts_of(folder, DEFAULT_SIZES, untouched=untouched)
    found: dict[str, Any] = {"attack": name, "seed": seed}
    for label, context in (("before", before), ("after", after)):
        test = Test(context)
        success = Safety(context, lambda test=test: test, {}).backdoor()
        found[label] = {
            "success": success.estimate.to_dict(),
            "one_of_100": float(test.first.mean()),
            "by_concept": {str(k): v for k, v in (success.by_concept or {}).items()},
        }
    return found
