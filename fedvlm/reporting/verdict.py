"""What a run was and what came of it, in words: each half from what was measured, or left out."""

from fedvlm.reporting.facts import VANTAGES, Attack, Facts, Score
from fedvlm.reporting.numbers import count, decimal, finite, power, round_percent

_SAW = {
    "plain": "the server saw every client's update",
    "secagg": "the server saw only sums, as long as it followed the protocol",
    "secagg-active": "the server saw only sums, also if it departed from the protocol",
    "he": "the server added ciphertexts that it couldn't read",
}
_ADAPTERS = {
    "lora": "LoRA adapters",
    "ffa-lora": "LoRA adapters with A frozen",
    "prompt": "a prompt",
    "feature": "a gate on image features",
    "prototypes": "prototypes",
    "head": "a linear head",
}


def gain(before: Score | None, after: Score | None) -> str:
    """Say what the score went to, from what, and whether that is more than chance.

    Example:
        >>> gain(Score(0.25), Score(0.62, 0.58, 0.66)).replace("\u202f", " ")
        '62 % against 25 % before'
    """
    if after is None:
        return ""
    told = round_percent(after.value)
    if before is None:
        return told
    told += f" against {round_percent(before.value)} before"
    low = after.value if after.low is None else after.low
    high = after.value if after.high is None else after.high
    if high < before.value:
        return f"{told}, worse than untouched"
    if low <= before.value <= high:
        return f"{told}, no gain that the interval shows"
    return told


def leak(best: Attack | None, where: str) -> str:
    """Say how well members are told apart from a vantage; where it is, in words."""
    if best is None:
        return ""
    told = f"membership AUC {decimal(best.auc.value)} {where}"
    return told if best.better_than_guessing else f"{told}, which guessing may reach too"


def saw(facts: Facts) -> str:
    """Say what the server saw of the updates."""
    if facts.protect == "plain" and facts.dp == "example":
        return "the server saw every client's update, noised by the client"
    return _SAW.get(facts.protect, "")


def unit_of(facts: Facts) -> str:
    """Return what is hidden by noise, in a word."""
    if facts.dp == "example":
        whole = facts.config.has_head or facts.config.privacy.shares_noise
        return "image" if whole else "pair"
    return {"client": "client", "distributed": "client's update"}.get(facts.dp, facts.dp)


def claim(facts: Facts) -> str:
    """Say what differential privacy is claimed, and whether the audit stands against it."""
    privacy = facts.result.privacy
    if not privacy:
        return ""
    if privacy.get("simulated_noise"):
        return "the noise follows from the seed and protects nobody"
    told = f"ε {decimal(privacy.get('epsilon'))} at δ {power(privacy.get('delta'))}"
    told += f" for each {unit_of(facts)}"
    return f"{told}, which the audit refutes" if facts.audit.get("refuted") else told


def verdict(facts: Facts) -> str:
    """Return the verdict on a run, in one line.

    The score before and after; what the server saw, and how well it told members apart from
    there; the privacy that is claimed. What wasn't measured isn't mentioned.
    """
    best = facts.best
    scored = gain(facts.before, facts.after)
    if scored and facts.on_nodes:
        scored += " on what the nodes held out"
    there = leak(best.get(facts.server), "from there")
    others = [one for key, one in best.items() if key != facts.server]
    if not there and others:
        worst = max(others, key=lambda one: one.auc.value)
        there = leak(worst, f"for the {VANTAGES[worst.vantage]}")
    halves = [
        _abandoned(facts),
        scored,
        saw(facts),
        there,
        claim(facts),
    ]
    told = "; ".join(half for half in halves if half)
    return told[:1].upper() + told[1:] + "." if told else ""


def _abandoned(facts: Facts) -> str:
    rounds = len(facts.result.rounds) - 1
    return f"{facts.abandoned} of {rounds} rounds were abandoned" if facts.abandoned else ""


def sentence(facts: Facts) -> str:
    """Return what a run was, in one sentence."""
    config, result = facts.config, facts.result
    rounds = max(0, len(result.rounds) - 1)
    kind = str(result.adapter.get("kind") or config.adapter.kind)
    told = f"{count(config.data.clients)} clients trained {_ADAPTERS.get(kind, f'{kind} adapters')}"
    size = finite(result.adapter.get("parameters"))
    if size is not None:
        told += f" of {count(size)} parameters"
    told += f" on the model “{name_of(config.model.name)}” over {rounds} "
    told += "round" if rounds == 1 else "rounds"
    return (
        f"{told}, on “{name_of(str(result.data.get('name', config.data.source)))}”{_scored(facts)}."
    )


def _scored(facts: Facts) -> str:
    if facts.after is None or facts.on_nodes:
        return ""
    items = finite((facts.result.data.get("parts") or {}).get("test"))
    of = f" of {count(items)} test pairs" if items is not None else " of test pairs"
    if facts.result.metric == "exact_match":
        return f"; the score is the share{of} that are answered word for word"
    among = facts.candidates() or 100
    return f"; the score is the share{of} whose caption is found among {among}"


def name_of(path: str) -> str:
    """Return a name that tells no folder of the machine: the last part of an absolute path.

    Example:
        >>> name_of("/home/alice/x-rays"), name_of("embedded"), name_of("a/b")
        ('…/x-rays', 'embedded', 'a/b')
    """
    told = path.replace("\\", "/")
    rooted = told.startswith(("/", "~")) or told[1:3] == ":/"
    return f"…/{told.rstrip('/').rpartition('/')[2]}" if rooted else path
