"""Aggregation rules side by side: `python -m simulations.rules_comparison [--seeds N] [--out DIR]`.

Each cell (rule, Dirichlet α, seed) is a whole federation and leaves one JSON file: what is there is
not run again, so that the grid can be stopped and gone on with at any time. Table and figure are
made from the files alone. Gains are over FedIT, paired by seed.

Personal adapters (FedSA-LoRA, pLoRA) are scored by their nodes, on the same test pairs as all
others; the mean over nodes stands beside `local only`, which is such a mean too.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes

from fedvlm.config import Config, config_from
from fedvlm.config.rules import keeps_personal
from fedvlm.federation import load_task, simulate
from fedvlm.files import write_text
from fedvlm.reporting.student import interval
from fedvlm.training import Evaluator
from simulations._page_figure import panels, save

ALPHAS = (0.1, 0.5, 5.0)
BASELINE = "fedit"
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("FedIT: A and B averaged", {}),
    "ffa": ("FFA-LoRA: A frozen", {"adapter": "ffa-lora"}),
    "fedsa": ("FedSA-LoRA: A shared, B personal", {"share": "A"}),
    "plora": ("pLoRA: B shared, A personal", {"share": "B"}),
    "rolora": ("RoLoRA: alternating", {"share": "alternate"}),
    "flexlora": ("FlexLoRA: product, cut to rank r", {"rule": "flexlora"}),
    "fedex": ("FedEx-LoRA: product, exact", {"rule": "fedex"}),
    "fedprox": ("FedProx, μ = 0.1", {"proximal_mu": 0.1}),
    "fedyogi": (
        "FedYogi, η = 0.01",
        {"server_optimizer": "fedyogi", "server_learning_rate": 0.01},
    ),
    "mask": ("FedIT, a quarter of the coordinates", {"compression": "mask", "kept": 0.25}),
}
_LAST = (
    r"(text_model|vision_model)\..*layers\.1\..*(q_proj|v_proj)|visual_projection|text_projection"
)
# What a cell is: `small` takes a minute or two of one core, `full` some twenty times that.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "clients": 5,
        "rounds": 3,
        "local_epochs": 2,
        "rank": 4,
        "lora_alpha": 8,
        "targets": _LAST,
        "membership": "half",
        "reference_epochs": 3,
    },
    "full": {"clients": 10, "rounds": 6, "local_epochs": 2, "rank": 16, "lora_alpha": 32},
}
_LINES = (("zero-shot", "zero_shot"), ("local only", "local_only"), ("central", "central"))


@dataclass(frozen=True)
class Cell:
    """One federation of the grid.

    Attributes:
        size: small or full.
        rule: Name of the rule.
        alpha: Concentration of the Dirichlet draws.
        seed: The experiment's seed.
        zero_shot: One of 100 on the test part before training, a fraction.
        score: The same after the last round; for personal adapters the mean over nodes.
        local_only: Mean over clients that train alone; None where references weren't asked for.
        central: One model on everybody's pairs; None likewise.
        upload_bytes: Of one client in the last round.
        seconds: Wall time.
    """

    size: str
    rule: str
    alpha: float
    seed: int
    zero_shot: float
    score: float
    local_only: float | None
    central: float | None
    upload_bytes: int
    seconds: float


def configuration(size: str, rule: str, alpha: float, seed: int) -> Config:
    """Return the federation of a cell; references are computed beside the baseline alone."""
    common = {"partition": "dirichlet", "alpha": alpha, "seed": seed, "workers": 1}
    references = {"references": rule == BASELINE}
    return config_from(SIZES[size] | common | references | RULES[rule][1])


def personal_scores(folder: Path) -> list[float]:
    """Return the last score of each node of a run's folder, as the nodes kept it."""
    kept = [json.loads(path.read_text()) for path in sorted(folder.glob("nodes/*/personal/*.json"))]
    return [each["scores"][-1][1] for each in kept if each["scores"]]


def run_cell(size: str, rule: str, alpha: float, seed: int) -> Cell:
    """Run one federation of the grid."""
    start, config = time.perf_counter(), configuration(size, rule, alpha, seed)
    task = load_task(config)
    # The test part is all that is compared; the other parts take most of a small cell's time.
    scorer = Evaluator(task.pairs, {"test": task.splits.test}, None)
    vars(task)["evaluator"] = scorer
    with tempfile.TemporaryDirectory() as name:
        result = simulate(config, out=name)
        score = result.summary["federated"]
        if keeps_personal(config):
            score = float(np.mean(personal_scores(Path(name))))
    return Cell(
        size=size,
        rule=rule,
        alpha=alpha,
        seed=seed,
        zero_shot=float(result.summary["zero_shot"] or 0),
        score=float(score or 0),
        local_only=result.summary["local_only"],
        central=result.summary["central"],
        upload_bytes=result.rounds[-1]["upload_bytes_per_client"],
        seconds=time.perf_counter() - start,
    )


def load_cells(out: Path, size: str) -> list[Cell]:
    """Read every cell of a folder."""
    paths = sorted(out.glob(f"cell-{size}-*.json"))
    return [Cell(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _told(values: list[float], signed: bool = False) -> str:
    """Return a mean in percent with the half-width of its interval."""
    mean, _, high = interval([100 * value for value in values])
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if len(values) < 2 else f"{text} ± {high - mean:.1f}"


def gains(cells: list[Cell], rule: str, alpha: float) -> list[float]:
    """Return a rule's gains over the baseline at an α, paired by seed, as fractions."""
    base = {c.seed: c.score for c in cells if c.rule == BASELINE and c.alpha == alpha}
    chosen = [c for c in cells if c.rule == rule and c.alpha == alpha and c.seed in base]
    return [cell.score - base[cell.seed] for cell in chosen]


def verdict(values: list[float]) -> str:
    """Say whether a gain is there: its 95 % interval is above zero, below, or holds zero."""
    _, low, high = interval(values)
    if len(values) < 2:
        return "one seed"
    return "gains" if low > 0 else "loses" if high < 0 else "no gain shown"


def table(cells: list[Cell]) -> str:
    """Return the grid as Markdown, in percent ± half of the 95 % interval over seeds."""
    lines = [
        "| α | | one of 100, % | over FedIT, paired | | KB up a round | seeds |",
        "|--:|---|--:|--:|---|--:|--:|",
    ]
    for alpha in ALPHAS:
        base = [c for c in cells if c.alpha == alpha and c.rule == BASELINE]
        for name, key in _LINES:
            found = [getattr(cell, key) for cell in base if getattr(cell, key) is not None]
            if found:
                lines.append(f"| {alpha:g} | *{name}* | {_told(found)} | | | | {len(found)} |")
        for rule, (name, _) in RULES.items():
            chosen = [c for c in cells if c.alpha == alpha and c.rule == rule]
            if not chosen:
                continue
            over, said = gains(cells, rule, alpha), ""
            paired = _told(over, signed=True) if over and rule != BASELINE else ""
            said = verdict(over) if paired else ""
            size = np.mean([cell.upload_bytes for cell in chosen]) / 1000
            cells_of = [name, _told([c.score for c in chosen]), paired, said, f"{size:.0f}"]
            lines.append(f"| {alpha:g} | {' | '.join(cells_of)} | {len(chosen)} |")
    return "\n".join(lines)


def plot(cells: list[Cell], alpha: float, ax: Axes) -> Axes:
    """Draw each rule's gain over FedIT at one α, a dot a seed and the interval of the mean."""
    rules = [rule for rule in RULES if rule != BASELINE and gains(cells, rule, alpha)]
    ax.axvline(0, color="#666666", linewidth=1)
    for place, rule in enumerate(rules):
        values = [100 * each for each in gains(cells, rule, alpha)]
        mean, low, high = interval(values)
        if len(values) > 1:
            ax.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="#0072B2", capsize=3)
        ax.plot(values, [place] * len(values), ".", color="#0072B2", alpha=0.5)
        ax.plot(mean, place, "o", color="#0072B2")
    ax.set_yticks(range(len(rules)), [RULES[rule][0].split(":")[0] for rule in rules])
    ax.invert_yaxis()
    ax.set(xlabel="points over FedIT, paired by seed", title=f"Dirichlet α = {alpha:g}")
    ax.grid(axis="x", alpha=0.25)
    return ax


def draw(cells: list[Cell], path: Path) -> None:
    """Write the figure: one panel for each α that has cells."""
    shown = [alpha for alpha in ALPHAS if any(c.alpha == alpha for c in cells)]
    figure, axes = panels(len(shown), height=3.6)
    for alpha, ax in zip(shown, axes, strict=True):
        plot(cells, alpha, ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def main(
    runs: Annotated[Path, typer.Option(help="folder of the cells")] = Path("runs/rules"),
    out: Annotated[Path, typer.Option(help="folder for table and figure")] = Path("docs/figures"),
    seeds: Annotated[int, typer.Option(help="seeds 0 … n − 1", min=1)] = 3,
    size: Annotated[str, typer.Option(help=f"a cell: {', '.join(SIZES)}")] = "small",
    alpha: Annotated[float, typer.Option(help="one α; 0 for all")] = 0.0,
    rules: Annotated[str, typer.Option(help="rules, separated by commas; empty for all")] = "",
) -> None:
    """Run what is missing of the grid, and write table and figure of what is there."""
    chosen = [each.strip() for each in rules.split(",")] if rules else list(RULES)
    wrong = [each for each in chosen if each not in RULES]
    if wrong or size not in SIZES or (alpha and alpha not in ALPHAS):
        known = f"rules {', '.join(RULES)}; sizes {', '.join(SIZES)}; alphas {ALPHAS}"
        typer.echo(f"error: known are {known}", err=True)
        raise typer.Exit(2)
    alphas = [alpha] if alpha else list(ALPHAS)
    grid = [(rule, a, seed) for a in alphas for seed in range(seeds) for rule in chosen]
    for done, (rule, a, seed) in enumerate(grid, 1):
        path = runs / f"cell-{size}-{rule}-{a:g}-{seed}.json"
        if path.exists():
            continue
        cell = run_cell(size, rule, a, seed)
        write_text(path, json.dumps(asdict(cell), indent=2) + "\n")
        typer.echo(
            f"{done}/{len(grid)} α = {a:g}, seed {seed}, {rule}: {100 * cell.score:.1f} % "
            f"({cell.seconds:.0f} s)",
            err=True,
        )
    cells = load_cells(runs, size)
    text = table(cells)
    print(text)
    write_text(out / "rules-comparison.md", text + "\n")
    draw(cells, out / "rules-comparison.svg")


if __name__ == "__main__":
    typer.run(main)
