"""What a run does not protect: the threat model's sentences that hold for its own settings."""

from dataclasses import dataclass

from fedvlm.reporting.facts import Attack, Facts
from fedvlm.reporting.numbers import decimal
from fedvlm.reporting.verdict import unit_of


@dataclass(frozen=True)
class Gap:
    """One thing that is left open.

    Attributes:
        title: From whom, or what, in a few words.
        text: What it means, in a sentence or two.
        measured: What this run's audit found of it; empty where it wasn't measured.
    """

    title: str
    text: str
    measured: str = ""


def _measured(best: Attack | None) -> str:
    if best is None:
        return ""
    told = f"Measured: membership AUC {decimal(best.auc.value)}"
    if best.auc.low is not None and best.auc.high is not None:
        told += f" [{decimal(best.auc.low)}, {decimal(best.auc.high)}]"
    return f"{told} by {best.name}."


def _server(facts: Facts) -> list[Gap]:
    seen = _measured(facts.best.get(facts.server))
    if facts.protect == "plain" and facts.dp == "example":
        return [
            Gap(
                "More than one pair, from the server",
                "It receives each client's update by itself. The noise in it hides a single "
                f"{unit_of(facts)}, and neither a client's style nor its topics.",
                seen,
            )
        ]
    if facts.protect == "plain":
        return [
            Gap(
                "Each client's update, from the server",
                "It receives each client's update by itself, and whoever runs it or breaks into "
                "it can attack one client at a time.",
                seen,
            )
        ]
    if facts.protect == "he":
        return [
            Gap(
                "Every update, from the server with one client",
                "All clients hold one key: any of them, together with the server, reads every "
                "update of every client, those of the past too.",
            ),
            Gap(
                "Single updates, from a server that lies about the sum",
                "Three copies of one client's ciphertext count as three clients. The client that "
                "decrypts can't tell, and the server reads a single update.",
            ),
            Gap(
                "The sum, from the client that decrypts it",
                "In its turn it sees the sum before noise is added.",
                seen,
            ),
        ]
    gaps = [Gap("What the sum tells", "The server learns every round's sum.", seen)]
    if facts.protect == "secagg":
        gaps.insert(
            0,
            Gap(
                "Single updates, from a server that departs from the protocol",
                "This mode trusts it to follow. One that lies about who is there may get at a "
                "single update; the mode secagg-active is for that.",
            ),
        )
    gaps += [
        Gap(
            "Updates, from more colluders than the policy allows",
            "Secrecy counts on at most the stated share of members passing on what they know.",
        ),
        Gap(
            "That somebody took part",
            "Who is in a sum, when it answers and how long it trains are visible to the server.",
        ),
    ]
    return gaps


def _noise(facts: Facts) -> list[Gap]:
    privacy = facts.result.privacy or {}
    if facts.dp == "none":
        return [
            Gap(
                "What the trained adapter remembers",
                "No noise was added, so that nothing bounds what the released adapter tells of a "
                "pair or of a client, to whoever holds it.",
                _measured(facts.best.get("V4")),
            )
        ]
    gaps = []
    if privacy.get("simulated_noise", facts.config.privacy.simulated_noise):
        gaps.append(
            Gap(
                "Anything: the noise can be taken away",
                "The noise follows from the experiment's seed, which stands in the result: who "
                "reads it can subtract the noise. Such a run protects nobody.",
            )
        )
    if facts.dp == "client":
        gaps += [
            Gap(
                "Updates, from the server",
                "It sees single updates, and is trusted to clip, to add noise, to keep its coins "
                "secret and to forget.",
            ),
            Gap(
                "Who was drawn",
                "Whoever sees the network's traffic knows it, and for them sampling makes nothing "
                "smaller.",
            ),
        ]
    elif facts.dp == "distributed":
        gaps.append(
            Gap(
                "That a client took part",
                "ε speaks of what a client sends, against its sending zero. Who takes part is "
                "public, and the sum's variance tells how many. It holds just as far as secure "
                "aggregation does.",
            )
        )
    else:
        gaps.append(
            Gap(
                f"More than one {unit_of(facts)}",
                f"Noise hides one {unit_of(facts)}. What many of a client's have in common is not "
                "hidden, and a near-duplicate counts as another one.",
            )
        )
        if facts.config.privacy.shares_noise:
            gaps.append(
                Gap(
                    "Pairs, from more colluders than were planned for",
                    "Each client adds a share of the noise, too little to hide by itself.",
                )
            )
    outside = privacy.get("outside_epsilon")
    names = outside if isinstance(outside, list) else []
    told = [str(name).replace("_", " ") for name in names]
    if told:
        gaps.append(
            Gap(
                "What was released outside of ε",
                f"Computed without noise, and told in this result: {', '.join(told)}.",
            )
        )
    return gaps


def unprotected(facts: Facts) -> list[Gap]:
    """Return what a run leaves open, from its own protection, privacy and engine.

    Each sentence is the threat model's (`docs/threat-model.md`), and stands only where the run's
    own settings make it true.
    """
    gaps = _server(facts) + _noise(facts)
    if facts.config.server.node_scores != "none":
        gaps.append(
            Gap(
                "What nodes' scores tell",
                "Sums of counts over held-out pairs were told, and no noise covers them.",
            )
        )
    gaps.append(
        Gap(
            "The model, from a client that poisons it",
            "A client can send a bad update within the bound."
            + ("" if facts.protect == "plain" else " The sum hides who plants it."),
        )
    )
    if facts.deployed:
        gaps.append(
            Gap(
                "Nodes, from a server that replaces the app",
                "It needs no attack on a protocol. Nodes are to run their own installation's app, "
                "as those of fedvlm deploy do.",
            )
        )
    else:
        gaps.append(
            Gap(
                "Anything, from whoever runs a simulation",
                "Everybody's data is on one machine there. What is measured holds for the same "
                "run between owners; nobody was protected from this machine.",
            )
        )
    return gaps
