"""What is claimed in figures, of which kept result, and how each is read from it."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedvlm.reporting.student import interval
from simulations._trust_table import attack_success, of

UTILITY = "simulations/reference/privacy-utility.json"
HEADS = "simulations/reference/head-audit.json"
GRID = "simulations/reference/attack-grid.json"
MUTATION = "simulations/reference/mutation.json"
PEERS = "simulations/reference/aggregation.json"
MODELS = "simulations/reference/models.json"
AUDIT = "simulations/reference/trust.json"
PRIVACY = "simulations/reference/privacy.json"
FEDERATION = "simulations/reference/federation.json"
SEARCH = "simulations/reference/he.json"
BOUNDS = "simulations/reference/leakage.json"
BLOCK = "simulations/reference/smpc.json"
RAY = "simulations/reference/federation-ray.json"
TRUST = "simulations/reference/trust-grid.json"
DIGITS = "simulations/reference/digits-control.json"
RELEARNING = "simulations/reference/relearning.json"
COMPARISON = "simulations/reference/compare-quick.json"
ANSWERS = "simulations/reference/demo-vqa.json"
AGGREGATION = "docs/figures/aggregation-growth.json"
HE = "docs/figures/he-growth.json"
SMPC = "docs/figures/smpc-growth.json"
SECONDS = "a factor of 2, by machine"
EXACT = "none: bytes and rounds are the protocol's"


@dataclass(frozen=True)
class Claim:
    """One line of the page: what is claimed, of which result, and how it is read from it."""

    text: str
    result: str
    value: Callable[[Any], str]
    tolerance: str


def _retrieval(name: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        found = [cell["scores"]["test"] for cell in result["cells"] if cell["name"] == name]
        mean, _, high = interval(found)
        return f"{mean:.1f} ± {high - mean:.1f} % ({len(found)} seeds)"

    return value


def _heads(private: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        (row,) = (r for r in result if (r["adapter"], r["private"]) == ("prototypes", private))
        mean, low, high, attack = row["auc"]["V4"]
        return f"AUC {mean:.2f} [{low:.2f}, {high:.2f}] by {attack}"

    return value


def _best(name: str, vantage: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        (row,) = (r for r in result if r[:2] == [name, vantage])
        return f"AUC {row[3]} by {row[2]}"

    return value


def _cell(key: str, unit: str, digits: int, **where: int) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        cells = result["cells"]
        (cell,) = (c for c in cells if all(c[name] == number for name, number in where.items()))
        return f"{cell[key]:.{digits}f} {unit}"

    return value


def _benched(metric: str, say: Callable[[dict[str, Any]], str]) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        (row,) = (r for r in result["rows"] if r["metric"] == metric)
        return say(row)

    return value


def _times(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3g} times"


def _null_alarms(result: Any) -> str:
    rates = [r["value"] for r in result["rows"] if r["metric"] == "null_false_alarm_rate"]
    return f"{100 * min(rates):.2g} to {100 * max(rates):.2g} %"


def _grown(result: Any) -> str:
    found = {row["metric"]: row["value"] for row in result["rows"]}
    start, peak = (found[f"{what}_1000_clients"] for what in ("startup_seconds", "peak_bytes"))
    return f"starts in {start:.0f} s, {peak / 1e6:.0f} MB"


def _ray(result: Any) -> str:
    nodes = result["supernodes"]["1000"]
    return f"starts in {nodes['startup_s']:.0f} s, {nodes['round_s']:.0f} s a round"


def _share(cell: dict[str, float]) -> str:
    return f"{100 * cell['value']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _backdoor(attack: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        cells = of(result["cells"], f"attack-{attack}")
        one = attack_success(cells)
        if one is None:
            raise KeyError(f"no cell of the attack {attack!r}")
        return f"{_share(vars(one))} ({len(cells)} seeds)"

    return value


def _tone_gap(result: Any) -> str:
    (column,) = (
        column
        for cell in result["cells"]
        if (cell["cell"], cell["seed"]) == ("plain", 0)
        for column in cell["columns"]
        if column["name"] == "tone_gap"
    )
    return f"{_share(column['before'])} before, {_share(column['after'])} after (seed 0)"


def _digits(name: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        (row,) = (r for r in result if r["name"] == name)
        mean, low, high = row["gap"]
        return f"gap {mean:.2f} [{low:.2f}, {high:.2f}], {row['seeds']} seeds"

    return value


def _relearned(other: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        drawn = result["lists"]["drawn"]
        (row,) = (
            r
            for r in drawn["rates"][drawn["chosen"]]["contrasts"]
            if (r["second"], r["part"]) == (other, "trained on") and r["epochs"] != [0]
        )
        told = (100 * row[end] for end in ("value", "low", "high"))
        return "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*told)

    return value


def _forgotten(result: Any) -> str:
    plain, sanitised = (
        result["lists"]["drawn"]["membership"][name]["listed"] for name in ("plain", "sanitised")
    )
    told = "AUC {value:.2f} [{low:.2f}, {high:.2f}]".format(**sanitised)
    return f"{told}; plain {plain['value']:.2f}"


def _federated_less(other: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        gap = result["federated_less"][other]
        told = "{mean:+.1f} points [{low:+.1f}, {high:+.1f}]".format(**gap)
        return f"{told} ({len(result['seeds'])} seeds)"

    return value


def _compared(name: str, column: str) -> Callable[[Any], str]:
    def value(result: Any) -> str:
        (row,) = (r for r in result["rows"] if (r["name"], r["adapter"]) == (name, "ffa-lora"))
        cell = row["cells"][column]
        if column.startswith("auc"):
            return f"AUC {cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
        return _share(cell)

    return value


def _he(result: Any) -> str:
    row = result["one query, dimension 512"][-1]
    return (
        f"{row['seconds']:.2f} s, {row['download_bytes'] / 1e6:.2f} MB for {row['items']:,} items"
    )


def _he_ratio(result: Any) -> str:
    (row,) = (r for r in result["one vector, d to d"] if r["width"] == 512)
    return f"{row['TenSEAL matmul'] / row['same parameters']:.0f} times faster"


def _smpc(result: Any) -> str:
    (row,) = (r for r in result["width"] if r["width"] == 768)
    return f"{row['rounds']} rounds, {row['online_bytes'] / 1e6:.2f} MB a party"


def _smpc_estimate(result: Any) -> str:
    rows = [row for part in result.values() for row in part]
    ratio = statistics.median(row["seconds"] / row["predicted_seconds"] for row in rows)
    return f"{ratio:.1f} times the predicted seconds (median)"


def _caught(result: Any) -> str:
    tried = [fault for fault in result["faults"] if fault["outcome"] in ("caught", "survived")]
    caught = sum(fault["outcome"] == "caught" for fault in tried)
    return f"{caught} of {len(tried)} tried, of {len(result['faults'])}"


def _faster(text: str, result: str, metric: str, tolerance: str = SECONDS) -> Claim:
    """Claim that a benchmark's metric is so many times faster than its peer's."""
    return Claim(text, result, _benched(metric, lambda row: f"{_times(row)} faster"), tolerance)


def _seeds_of(name: str, text: str) -> Claim:
    return Claim(text, UTILITY, _retrieval(name), "its interval")


CLAIMS = (
    _seeds_of("zero-shot", "One of 100 before training, test part"),
    _seeds_of("public-only control", "What public pairs alone give"),
    _seeds_of("LoRA, no DP", "LoRA, no protection"),
    _seeds_of("prototypes, no DP", "Prototypes, no DP"),
    _seeds_of(
        "prototypes, planned for 6 of 10, ε = 8", "Prototypes, shared noise, ε = 8, δ = 10⁻³"
    ),
    _seeds_of("prototypes, planned for 6 of 10, ε = 3", "Prototypes, shared noise, ε = 3"),
    _seeds_of("prototypes, planned for 6 of 10, ε = 1", "Prototypes, shared noise, ε = 1"),
    _seeds_of("prototypes, each alone, ε = 8", "Prototypes, each client's own noise, ε = 8"),
    _seeds_of("LoRA, each alone, ε = 8, δ = 0.001", "LoRA, each client's own noise, ε = 8"),
    Claim("Membership from released prototypes, no DP", HEADS, _heads("no DP"), "its interval"),
    Claim("Best attack from the server, no protection", GRID, _best("plain", "V1"), "its interval"),
    Claim(
        "Best attack from the released adapter, no protection",
        GRID,
        _best("plain", "V4"),
        "its interval",
    ),
    Claim(
        "Best attack from the released adapter, example level at ε = 8",
        GRID,
        _best("example-level DP", "V4"),
        "its interval",
    ),
    Claim("Planted faults that a test notices", MUTATION, _caught, "none"),
    Claim(
        "Secure aggregation of 10⁶ parameters, a client of 100",
        AGGREGATION,
        _cell("client_s", "CPU s", 2, clients=100, length=1_000_000),
        SECONDS,
    ),
    Claim(
        "Secure aggregation, the server of 1,000 of whom 100 drop out",
        AGGREGATION,
        _cell("server_s", "CPU s", 1, clients=1000, length=1_000_000),
        SECONDS,
    ),
    _faster("Masking 10⁶ parameters, beside flwr's SecAgg+", PEERS, "client_mask_seconds"),
    Claim(
        "Attacks on the sum that are refused, and by flwr's SecAgg+",
        PEERS,
        _benched(
            "attacks_refused",
            lambda row: f"{row['value']:.0f}, the peer {row['value'] / row['ratio']:.0f}",
        ),
        EXACT,
    ),
    _faster(
        "A round in process, beside Flower's simulation of the same app",
        FEDERATION,
        "round_seconds",
    ),
    _faster("The start of it", FEDERATION, "startup_seconds"),
    _faster(
        "A step of LoRA on a CLIP of ViT-B/32's size, beside the plain peft loop",
        MODELS,
        "step_seconds",
        "a tenth either way",
    ),
    Claim(
        "Its peak memory",
        MODELS,
        _benched("peak_bytes", lambda row: f"{_times(row)} less"),
        "a tenth",
    ),
    Claim(
        "A contrastive batch of 512, 32 at a time, beside the batch at once",
        MODELS,
        _benched("gradcache_peak_bytes", lambda row: f"{_times(row)} less memory"),
        "a tenth",
    ),
    _faster("A second epoch's inputs, beside decoding 5,000 JPEGs", MODELS, "epoch_input_seconds"),
    Claim(
        "A folder of 20,000 images",
        MODELS,
        _benched("resident_bytes", lambda row: f"{row['value'] / 1e6:.0f} MB"),
        "a tenth",
    ),
    Claim(
        "The whole trust audit of a run",
        AUDIT,
        _benched("audit_seconds", lambda row: f"{row['value']:.0f} s"),
        SECONDS,
    ),
    Claim(
        "Its alarms over five equal groups, 400 draws",
        AUDIT,
        _benched("false_alarm_rate", lambda row: f"{100 * row['value']:.1f} %"),
        "its interval",
    ),
    Claim(
        "False alarms of lower bounds of ε, six ways, 400 draws, nominal 5 %",
        BOUNDS,
        _null_alarms,
        "below 5 %",
    ),
    _faster(
        "Encrypted search of 10,000 items, beside TenSEAL's own", SEARCH, "gallery_10k_seconds"
    ),
    Claim(
        "Rounds of a ViT-B/32 block between two parties, beside CrypTen",
        BLOCK,
        _benched("rounds", lambda row: f"{row['value']:.0f}, the peer {row['peer_value']:.0f}"),
        EXACT,
    ),
    _faster("A DP-SGD step beside Opacus' fastest mode", PRIVACY, "dpsgd_step_seconds"),
    Claim("1,000 clients in process", FEDERATION, _grown, SECONDS),
    Claim("1,000 SuperNodes on Ray, 50 a round", RAY, _ray, SECONDS),
    Claim(
        "Answers of the federated model, exact match, less zero-shot's",
        ANSWERS,
        _federated_less("zero_shot"),
        "its interval",
    ),
    Claim("Less what clients reach alone", ANSWERS, _federated_less("local_only"), "its interval"),
    Claim("Less central training's", ANSWERS, _federated_less("central"), "its interval"),
    Claim(
        "Top-1 without protection, quick grid",
        COMPARISON,
        _compared("none", "accuracy"),
        "its interval",
    ),
    Claim(
        "Membership from single updates there",
        COMPARISON,
        _compared("none", "auc_V1"),
        "its interval",
    ),
    Claim("Gap of default and dark tone, plain", TRUST, _tone_gap, "its interval"),
    Claim("Backdoor of one client in ten, plain", TRUST, _backdoor("plain"), "its interval"),
    Claim("The same with a bound on norms", TRUST, _backdoor("norm-bound"), "its interval"),
    Claim(
        "First place of sanitised pairs after tuning on others, over a run that never had them",
        RELEARNING,
        _relearned("left out"),
        "its interval",
    ),
    Claim("Membership of sanitised pairs", RELEARNING, _forgotten, "its interval"),
    Claim("A rare digit's gap, no DP", DIGITS, _digits("no DP"), "its interval"),
    Claim("A rare digit's gap, ε = 3", DIGITS, _digits("ε = 3"), "its interval"),
    Claim("Encrypted 512 → 512, beside TenSEAL's own", HE, _he_ratio, SECONDS),
    Claim("Encrypted search of a gallery, dimension 512", HE, _he, SECONDS),
    Claim("One ViT-B/32 block between two parties", SMPC, _smpc, EXACT),
    Claim("Seconds of private inference over what is predicted", SMPC, _smpc_estimate, SECONDS),
)
