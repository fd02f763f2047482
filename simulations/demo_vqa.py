"""The demo of models that answer: `python -m simulations.demo_vqa [--seeds N] [--out DIR]`.

Runs `configs/demo-vqa.toml` once a seed (a seed that was run already is read from its folder), and
prints zero-shot, local-only, federated and central accuracy with 95 % intervals over the seeds:
exact match of greedy answers to questions about images that nobody trained on. Writes table and
figure for the docs, and the numbers to `simulations/reference/demo-vqa.json`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.config import load_config
from fedvlm.data.questions import KINDS
from fedvlm.federation import Result
from fedvlm.files import write_text
from fedvlm.reporting.seeds import described, percent
from fedvlm.reporting.seeds import markdown as table
from fedvlm.reporting.student import interval
from simulations._page_figure import panels, save
from simulations._seeds import run_seeds

CONFIG = Path(__file__).parent / "configs" / "demo-vqa.toml"
_COMPARED = ("zero_shot", "local_only", "local_only_best", "central")
_SHOWN = ("zero_shot", "local_only", "federated", "central")


def differences(results: list[Result]) -> dict[str, dict[str, float]]:
    """Return federated less each other, seed by seed, in points: mean and 95 % interval."""
    found = {}
    for key in _COMPARED:
        pairs = zip(percent(results, "federated"), percent(results, key), strict=True)
        mean, low, high = interval([own - other for own, other in pairs])
        found[key] = {"mean": mean, "low": low, "high": high}
    return found


def by_kind(results: list[Result]) -> str:
    """Return exact match by kind of question before and after the federation, as Markdown."""
    lines = ["| question | zero-shot, % | federated, % |", "|---|--:|--:|"]
    for kind in KINDS:
        key = f"test_exact_match_{kind}"
        if not all(key in one.rounds[0] for one in results):
            continue
        ends = [[100 * one.rounds[at][key] for one in results] for at in (0, -1)]
        lines.append(f"| {kind} | {described(ends[0])} | {described(ends[1])} |")
    return "\n".join(lines) + "\n"


def draw(results: list[Result], path: Path) -> None:
    """Draw each way of training: mean with its interval, and every seed as a point."""
    figure, (axes,) = panels(1, height=3.0)
    labels = ("zero-shot", "local only\n(mean of clients)", "federated", "central")
    colours = ("#7f7f7f", "#E69F00", "#0072B2", "#009E73")
    for place, (key, colour) in enumerate(zip(_SHOWN, colours, strict=True)):
        values = percent(results, key)
        mean, low, high = interval(values)
        axes.barh(place, mean, height=0.62, color=colour, alpha=0.45)
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", capsize=3)
        axes.plot(values, [place] * len(values), "o", color=colour, mec="black", ms=5, mew=0.7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("exact match on held-out images, %")
    save(figure, path)


def main(
    seeds: Annotated[int, typer.Option(help="number of seeds, at least 2")] = 3,
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder for tables and figure")] = Path("docs/figures"),
    reference: Annotated[Path, typer.Option(help="folder for the numbers")] = (
        Path("simulations/reference")
    ),
) -> None:
    """Run the demo of models that answer over several seeds and summarise."""
    results = run_seeds("demo-vqa", load_config(CONFIG), seeds, runs)
    text, kinds, gaps = table(results, "exact match"), by_kind(results), differences(results)
    print(text, kinds, sep="\n")
    for key, gap in gaps.items():
        name = key.replace("_", " ")
        print(
            f"federated less {name}: {gap['mean']:+.1f} points "
            f"[{gap['low']:+.1f}, {gap['high']:+.1f}]"
        )
    write_text(out / "demo-vqa.md", f"{text}\n{kinds}")
    draw(results, out / "demo-vqa.svg")
    numbers = {
        "config": results[0].config,
        "seeds": [one.seed for one in results],
        "summaries": [one.summary for one in results],
        "last_rounds": [one.rounds[-1] for one in results],
        "first_rounds": [one.rounds[0] for one in results],
        "federated_less": gaps,
        "versions": results[0].versions,
    }
    write_text(reference / "demo-vqa.json", json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
