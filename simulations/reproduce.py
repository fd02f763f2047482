"""The page of claims that can be measured again: `python -m simulations.reproduce [FILE]`.

Every number is read from a result that the repository keeps; `simulations/reference/index.json`
says by which command it was made, in how many minutes, and when. Written by a script, so that page
and results can't disagree.
"""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.reporting.student import interval
from simulations._made_page import deliver

ROOT = Path(__file__).parent.parent
INDEX = ROOT / "simulations" / "reference" / "index.json"
UTILITY = "simulations/reference/privacy-utility.json"
HEADS = "simulations/reference/head-audit.json"
GRID = "simulations/reference/attack-grid.json"
MUTATION = "simulations/reference/mutation.json"
AGGREGATION = "docs/figures/aggregation-growth.json"
HE = "docs/figures/he-growth.json"
SMPC = "docs/figures/smpc-growth.json"
SECONDS = "a factor of 2, by machine"
EXACT = "none: bytes and rounds are the protocol's"
_HEAD = """\
# Reproduce

<!-- Made from the kept results: python -m simulations.reproduce docs/reproduce.md -->

Every claim in figures, the command that measures it again, and what it gave last. Commands run from
a clone after `make setup`; minutes are of two cores, and "–" where nobody noted them. A result
within the tolerance agrees with ours; intervals over seeds are of 95 %.

"""


@dataclass(frozen=True)
class Claim:
    """One line of the page: what is claimed, of which result, and how it is read from it."""

    text: str
    result: str
    value: Callable[[Any], str]
    tolerance: str


@cache
def kept(path: str) -> Any:
    """Return a kept result."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


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
    Claim("Encrypted 512 → 512, beside TenSEAL's own", HE, _he_ratio, SECONDS),
    Claim("Encrypted search of a gallery, dimension 512", HE, _he, SECONDS),
    Claim("One ViT-B/32 block between two parties", SMPC, _smpc, EXACT),
    Claim("Seconds of private inference over what is predicted", SMPC, _smpc_estimate, SECONDS),
)


def rows(claims: Iterable[Claim] = CLAIMS) -> list[str]:
    """Return the table's rows."""
    index = kept("simulations/reference/index.json")
    lines = []
    for claim in claims:
        made = index[claim.result]
        minutes = "–" if made["minutes"] is None else f"{made['minutes']:g}"
        value = claim.value(kept(claim.result))
        lines.append(
            f"| {claim.text} | {value} | {claim.tolerance} | {minutes} | `{made['command']}` "
            f"| {made['measured']} |"
        )
    return lines


def page() -> str:
    """Return the page."""
    head = "| claim | last measured | tolerance | minutes | command | on |"
    return _HEAD + "\n".join([head, "|---|---|---|--:|---|---|", *rows()]) + "\n"


def main(
    path: Annotated[Path | None, typer.Argument(help="file to write; prints without one")] = None,
) -> None:
    """Write the page."""
    deliver(page(), path)


if __name__ == "__main__":
    typer.run(main)
