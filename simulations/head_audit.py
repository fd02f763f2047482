"""What an attacker gets of heads, vantage by vantage, where each caption is of one image.

    python -m simulations.head_audit --out runs/head-audit

The worst case for a head: a folder of 90 images with a caption each, over three clients. A
prototype is then one image's feature. Each run leaves one JSON file; the table is made of them.
"""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.files import write_text
from fedvlm.leakage.audit_run import audit_run
from simulations.two_classes import make

IMAGES = 90
_SHARED = {"dp": "example", "noise": "shared", "protect": "secagg", "delta": 1e-3}
_OWN = {"dp": "example", "noise": "own", "protect": "plain", "delta": 1e-3}
PRIVATE: dict[str, dict[str, Any]] = {
    "no DP": {},
    "own noise, ε = 8": _OWN | {"epsilon": 8.0},
    "shared noise, ε = 8": _SHARED | {"epsilon": 8.0},
    "shared noise, ε = 1": _SHARED | {"epsilon": 1.0},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "prototypes": {"rounds": 1},
    "head": {"rounds": 2},
}


def folder_of_patients(folder: Path) -> list[str]:
    """Make the folder; returns its captions."""
    make(folder, IMAGES)
    captions = [f"patient {number}" for number in range(IMAGES)]
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        table.writerows([f"{n:04d}.png", caption] for n, caption in enumerate(captions))
    return captions


def run(adapter: str, private: str, out: Path) -> dict[str, Any]:
    """Federate and audit; returns what the table shows."""
    captions = folder_of_patients(out / "data")
    settings = {
        "data": str(out / "data"),
        "clients": 3,
        "partition": "iid",
        "adapter": adapter,
        "head_captions": "\n".join(captions),
        "membership": "half",
        "transcript": True,
        "canaries": 64,
        "workers": 1,
    }
    simulate(config_from(settings | ADAPTERS[adapter] | PRIVATE[private]), out=out / "run")
    audit = audit_run(out / "run")
    if audit.canaries is None:
        raise RuntimeError("the run planted no canaries")
    told = {(one.vantage, one.attack): one for one in audit.reconstructions}
    feature = told["V4", "feature-of-caption"]
    return {
        "adapter": adapter,
        "private": private,
        "auc": {
            one.vantage: [one.auc.value, one.auc.low, one.auc.high, one.attack]
            for one in audit.best
        },
        "canaries": {one.vantage: one.auc.value for one in audit.canaries.results},
        "feature": [feature.members, feature.non_members],
        "refuted": audit.refuted,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    vantages = ("V1", "V2", "V3", "V4", "V5")
    lines = [
        "| | "
        + " | ".join(vantages)
        + " | canaries, V4 | feature read: held / not held | refuted |",
        "|---|" + "---|" * 8,
    ]
    for row in rows:
        found = [f"{row['auc'][v][0]:.2f}" if v in row["auc"] else "–" for v in vantages]
        held, other = row["feature"]
        lines.append(
            f"| {row['adapter']}, {row['private']} | {' | '.join(found)} | "
            f"{row['canaries']['V4']:.2f} | {held:.2f} / {other:.2f} | "
            f"{'yes' if row['refuted'] else 'no'} |"
        )
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="folder of the runs and the table")],
) -> None:
    """Run what is missing, and write the table."""
    rows = []
    for adapter in ADAPTERS:
        for number, private in enumerate(PRIVATE):
            place = out / f"{adapter}-{number}"
            path = place / "audit.json"
            if not path.exists():
                place.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(run(adapter, private, place), indent=2) + "\n")
            rows.append(json.loads(path.read_text(encoding="utf-8")))
    print(table(rows))
    write_text(out / "head-audit.md", table(rows) + "\n")
    write_text(out / "head-audit.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
