"""Does what was sanitised come back at once? Adapters tuned on a few pairs of a forget list.

    python -m simulations.relearning --out runs/relearning

Two forget lists: the unsafe one of the trust grid, of which clients hold too few concepts for an
interval of relearning, and one of sixty concepts that is drawn. Of the latter four adapters are
tuned alike: that of the plain run, that of the run which was told to forget, that of a run whose
clients never held the listed pairs (what forgetting should give), and the untrained one. Of the
rates of tuning the one is shown that an attacker would choose: by the sanitised adapter's score on
the other drawings, which are at hand. Writes JSON, a table (Markdown) and a figure (SVG, and PNG to
look at); runs that are there are kept.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.data.unsafe import UNSAFE
from fedvlm.errors import ConfigError
from fedvlm.federation.client_app import app
from fedvlm.federation.result import Result
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import load_task
from fedvlm.files import write_text
from fedvlm.mitigation.composition import require_composition
from fedvlm.trust.estimate import MIN_ROWS, Estimate
from fedvlm.trust.membership import margins, membership_by_group
from fedvlm.trust.relearning import (
    EPOCHS,
    RETAIN,
    TRAINED,
    UNSEEN,
    Curve,
    Parts,
    contrast,
    estimate,
    parts_of,
    relearned,
)
from simulations._kept import rounded
from simulations._relearning_page import NAME, draw, table
from simulations._relearning_runs import drawn_list, held_by, left_out, on_list, state_of
from simulations._trust_federate import federate
from simulations._trust_repairs import changed_client, repaired_client, sanitised
from simulations._trust_rows import configuration

REFERENCE = Path(__file__).parent / "reference" / f"{NAME}.json"
_NEGATIVES = 256


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        concepts: Of the drawn forget list.
        draws: Of the tuning part, each with shuffles of its own.
        retain: Test images of other concepts, at most.
        others: Members and non-members of other concepts, at most so many of each.
        epochs: Of tuning.
        rates: Of tuning, over that of the federation's first round. A large one destroys what the
            adapter knew before it can come back: an attacker tries several.
    """

    concepts: int = 60
    draws: int = 3
    retain: int = 200
    others: int = 400
    epochs: tuple[int, ...] = EPOCHS
    rates: tuple[float, ...] = (1.0, 0.3, 0.1)


def _membership(
    task: RetrievalTask, states: Mapping[str, NDArray], listed: Collection[str], others: int
) -> dict[str, Any]:
    """Return the AUC among listed pairs, and among others, of each trained state."""
    vlm, pairs, rng = task.model.vlm, task.pairs, task.seed.numpy("forget", "others")
    members = np.concatenate(task.splits.clients)
    rest = np.concatenate(task.splits.non_members)
    rows, inside = [], []
    for part, member in ((members, True), (rest, False)):
        on = on_list(task, part, listed)
        chosen = np.concatenate([part[on], rng.permutation(part[~on])[:others]])
        rows.append(chosen)
        inside.append(np.full(len(chosen), member))
    rows, inside = np.concatenate(rows), np.concatenate(inside)
    groups = np.where(on_list(task, rows, listed), "listed", "others")
    negatives = np.unique(pairs.caption_of[task.splits.retention])[:_NEGATIVES]

    def scores(state: NDArray) -> NDArray[np.float64]:
        task.view.write(state)
        images = vlm.embed(pairs.images(rows), "image").double().numpy()
        own, place = np.unique(pairs.caption_of[rows], return_inverse=True)
        texts = vlm.embed(pairs.captions(own), "text").double().numpy()[place]
        public = vlm.embed(pairs.captions(negatives), "text").double().numpy()
        return margins(images, texts, public, float(vlm.logit_scale.detach()))

    start, out = scores(task.initial), {}
    for name, state in states.items():
        rng = task.seed.numpy("forget", "membership")
        found = membership_by_group(scores(state) - start, inside, groups, rng)
        out[name] = {group: one.to_dict() for group, one in found.items()}
    task.reset()
    return out


def _drawn_parts(
    task: RetrievalTask, listed: Collection[str], sizes: Sizes
) -> tuple[list[Parts], dict[str, int]]:
    """Draw tuning parts; returns them and how many pairs each of their parts has."""
    trained, unseen = (rows[on_list(task, rows, listed)] for rows in held_by(task))
    unseen = unseen[np.isin(task.data.concepts[unseen], task.data.concepts[trained])]
    retain = task.splits.test[~on_list(task, task.splits.test, listed)]
    retain = task.seed.numpy("forget", "retain").permutation(retain)[: sizes.retain]
    parts = [
        parts_of(task.pairs, trained, unseen, retain, task.seed.numpy("forget", "draw", number))
        for number in range(sizes.draws)
    ]
    counts = {name: len(rows) for name, rows in parts[0].scored.items()}
    return parts, {"tuned on": len(parts[0].tuning), **counts}


def _curves(
    task: RetrievalTask,
    states: Mapping[str, NDArray],
    parts: Sequence[Parts],
    rate: float,
    sizes: Sizes,
) -> dict[str, list[Curve]]:
    first = task.config.training.local_settings(1)
    settings = replace(first, learning_rate=rate * first.learning_rate)
    return {
        name: [
            relearned(
                *(task.model.vlm, task.view, task.pairs, state, one, settings),
                lambda number=number: task.seed.numpy("forget", "shuffles", number),
                sizes.epochs,
            )
            for number, one in enumerate(parts)
        ]
        for name, state in states.items()
    }


def _told(curves: Mapping[str, list[Curve]], task: RetrievalTask, sizes: Sizes) -> dict[str, Any]:
    def rng() -> np.random.Generator:
        return task.seed.numpy("forget", "intervals")

    told: dict[str, Any] = {
        name: {
            part: {str(n): estimate(found, part, n, rng()).to_dict() for n in sizes.epochs}
            for part in (TRAINED, UNSEEN, RETAIN)
        }
        for name, found in curves.items()
    }
    later = [count for count in sizes.epochs if count]
    contrasts = [
        {
            "first": "sanitised",
            "second": other,
            "part": part,
            "epochs": counts,
            **contrast(curves["sanitised"], curves[other], part, counts, rng()).to_dict(),
        }
        for other in ("left out", "before", "plain")
        for part in (TRAINED, UNSEEN)
        for counts in ([0], later)
    ]
    known = [told["sanitised"][UNSEEN][str(n)]["value"] for n in later]
    gained = None if None in known else float(np.mean(known))
    return {"curves": told, "contrasts": contrasts, "sanitised, other drawings": gained}


def measure(config: Config, runs: Path, sizes: Sizes = Sizes()) -> dict[str, Any]:
    """Run what is missing, and measure both lists.

    Args:
        config: A federation whose pairs are members by a coin.
        runs: Folder of runs, named as the trust grid names them.
        sizes: How much is measured.
    """
    task = load_task(config)
    if not isinstance(task, RetrievalTask):
        raise ConfigError("relearning is measured on dual encoders")
    require_composition("sanitise", config.protection.protect, config.privacy.dp)
    seed, listed = config.training.seed, drawn_list(task, sizes.concepts)
    clients = {
        f"plain-{seed}": app,
        f"plain+sanitise-{seed}": repaired_client(config, "sanitise"),
        f"plain+sanitise-{len(listed)}-drawn-{seed}": changed_client(sanitised(listed)),
        f"plain-without-{len(listed)}-drawn-{seed}": changed_client(left_out(listed)),
    }
    for name, client in clients.items():
        federate(config, runs / name, client)
    start = time.perf_counter()
    frozen = dict(task.model.vlm.named_parameters())
    plain, unsafe, forgot, without = (state_of(runs / n, task.view, frozen) for n in clients)
    states = {"plain": plain, "sanitised": forgot, "left out": without}
    parts, counts = _drawn_parts(task, listed, sizes)
    rates = {
        f"{rate:g}": _told(
            _curves(task, {**states, "before": task.initial}, parts, rate, sizes), task, sizes
        )
        for rate in sizes.rates
    }
    drawn = {
        "concepts": len(listed),
        "rows": counts,
        "rates": rates,
        "chosen": max(rates, key=lambda rate: rates[rate]["sanitised, other drawings"] or 0.0),
        "membership": _membership(task, states, listed, sizes.others),
    }
    states = {"plain": plain, "sanitised": unsafe}
    members = np.concatenate(task.splits.clients)
    held = len(np.unique(task.data.concepts[members[on_list(task, members, UNSAFE)]]))
    few = {"concepts": held, "membership": _membership(task, states, UNSAFE, sizes.others)}
    if held < MIN_ROWS:
        few["unresolved"] = str(Estimate(np.nan, np.nan, np.nan, held, held))
    seconds = {name: Result.load(runs / name).seconds["federate"] for name in clients}
    seconds["tuning and scoring"] = time.perf_counter() - start
    return {
        "seed": seed,
        "draws": sizes.draws,
        "epochs": list(sizes.epochs),
        "seconds": {name: round(one, 1) for name, one in seconds.items()},
        "lists": {"drawn": drawn, "unsafe": few},
    }


def main(
    out: Annotated[Path, typer.Option(help="folder of JSON, table and figures")],
    runs: Annotated[
        Path | None, typer.Option(help="folder of runs; what is missing is made there")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="draw only, from what the repository keeps")
    ] = False,
) -> None:
    """Measure relearning, and write its table and figures."""
    out.mkdir(parents=True, exist_ok=True)
    if reference:
        found = json.loads(REFERENCE.read_text(encoding="utf-8"))
    else:
        found = rounded(measure(configuration("plain", 0), runs or out / "runs"))
        write_text(out / f"{NAME}.json", json.dumps(found, indent=1) + "\n")
    write_text(out / f"{NAME}.md", table(found))
    print(table(found))
    draw(found, out)


if __name__ == "__main__":
    typer.run(main)
