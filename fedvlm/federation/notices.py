"""What a run should be told before it starts, and after: noise that drowns, cohorts too small."""

from fedvlm.config import Config, config_from
from fedvlm.federation.result import Result

_SURE = 1.5
_DROWNED = (
    "the noise cost more than the federation gained: federated {now:.1f} %, {line} {then:.1f} %; "
    "use a larger ε, more clients or examples, or an adapter of fewer parameters "
    "(fedvlm privacy plan forecasts it)"
)


def before(config: Config) -> list[str]:
    """Return notices on a configuration, before a round is run; each is one line."""
    return [*_cohort(config), *_noise(config)]


def _cohort(config: Config) -> list[str]:
    wished = config.server.fraction * config.nodes
    if wished >= _SURE:
        return []
    told = f"fraction = {config.server.fraction:g} of {config.nodes} clients is {wished:.2g}"
    if config.privacy.dp == "client":
        return [f"{told} a round in the mean: secret coins draw nobody in many rounds"]
    return [f"{told}; a round asks {config.cohort}, since an average of one is that client's own"]


def _noise(config: Config) -> list[str]:
    """Forecast noise against signal where a whole run's plan can be made from public facts."""
    dp = config.privacy.dp
    if dp not in ("client", "distributed") or config.has_head:
        return []
    from fedvlm.federation.task import load_task
    from fedvlm.privacy.forecast import forecast_clients

    found = forecast_clients(
        parameters=load_task(config).view.size,
        clients=config.nodes,
        rounds=config.training.rounds,
        fraction=config.server.fraction if dp == "client" else 1.0,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
    )
    if found.hopeful:
        return []
    return [
        f"at ε = {config.privacy.epsilon:g} per client the noise of all rounds is about "
        f"{1 / found.ratio:.0f} times as long as {config.nodes} clients' updates can add up to: "
        f"the adapter {found.verdict}"
    ]


def after(result: Result) -> list[str]:
    """Return notices on a finished run; each is one line."""
    if result.privacy is None:
        return []
    summary, found = result.summary, []
    now = summary.get("federated")
    for key, line in (("zero_shot", "zero-shot"), ("control", "public pairs alone")):
        then = summary.get(key)
        if now is not None and then is not None and now < then:
            text = _DROWNED.format(now=100 * now, line=line, then=100 * then)
            found = [text]  # the last is the higher line
    if config_from(result.config).privacy.simulated_noise:
        found.append("the noise was drawn from the seed: nothing of this run may be released")
    return found
