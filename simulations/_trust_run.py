"""Cells of the trust grid: what each of them is, and how it is run."""

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from fedvlm.mitigation.composition import require_composition
from fedvlm.models import load_model
from fedvlm.trust.audit import (
    TONE_MEASURES,
    audit_models,
    columns_from,
    contexts_of,
    measures_of,
    read_all,
)
from fedvlm.trust.context import DEFAULT_SIZES, Context, Sizes
from fedvlm.trust.subject import Subject
from simulations._trust_backdoor import ATTACKS, run_attack
from simulations._trust_federate import federate
from simulations._trust_inference import INFERENCES, run_inference
from simulations._trust_repairs import POSTHOC, TRAINED, repaired_client
from simulations._trust_rows import PROTECTIONS, configuration

HALF = Sizes(half=True)
MITIGATED = ("plain", "example-8")
Readings = dict[str, Any]


def cells() -> dict[str, tuple[str, ...]]:
    """Return every cell's parts by name, in the order in which they are run.

    What stands after any stop is a whole table of fewer rows: protections and attacks first, then
    what needs no federation of its own, then mitigations in training.
    """
    found: dict[str, tuple[str, ...]] = {row: ("protection", row) for row in PROTECTIONS}
    found |= {f"attack-{name}": ("attack", name) for name in ATTACKS}
    found |= {f"inference-{name}": ("inference", name) for name in INFERENCES}
    for row in MITIGATED:
        found |= {f"{row}+{name}": ("posthoc", row, name) for name in POSTHOC}
        composed = [name for name in TRAINED if composes(name, row)]
        found |= {f"{row}+{name}": ("trained", row, name) for name in composed}
    return found


def composes(repair: str, row: str) -> bool:
    """Return whether a mitigation in training goes with a row's protection; else it has no cell."""
    protection = PROTECTIONS[row]
    try:
        require_composition(
            repair, protection.get("protect", "plain"), protection.get("dp", "none")
        )
    except ConfigError:
        return False
    return True


class Held:
    """Readings that several cells of one process share: of the untouched model, and of runs."""

    def __init__(self) -> None:
        self._whole: dict[tuple[str, int], Readings] = {}
        self._half: dict[tuple[str, int], Readings] = {}

    @cached_property
    def untouched(self) -> Subject:
        """The model before training: the same for every seed, embedded once."""
        return Subject(load_model())

    def __call__(self, context: Context, name: str, seed: int) -> Readings:
        """Return the readings of a model, reading off the context what isn't there yet.

        Args:
            context: Of that model, whole or half.
            name: Which model: "zero-shot", or a row of protections.
            seed: Of its data and draws.
        """
        key = (name, seed)
        if not context.sizes.half:
            if key not in self._whole:
                self._whole[key] = read_all(context)
            return self._whole[key]
        if key not in self._half:
            whole = self._whole.get(key, {})
            same = {name: one for name, one in whole.items() if name not in TONE_MEASURES}
            self._half[key] = read_all(context, known=same)
        return self._half[key]


def _protection(row: str, seed: int, out: Path, held: Held) -> dict[str, Any]:
    folder = out / "runs" / f"{row}-{seed}"
    federate(configuration(row, seed), folder)
    before, after, identity = contexts_of(folder, DEFAULT_SIZES, untouched=held.untouched)
    zero, ours = held(before, "zero-shot", seed), held(after, row, seed)
    found = audit_models(before, after, known=zero, known_after=ours)
    return {**found.to_dict(), "identity": identity}


def _trained(row: str, repair: str, seed: int, out: Path, held: Held) -> dict[str, Any]:
    folder = out / "runs" / f"{row}+{repair}-{seed}"
    config = configuration(row, seed)
    federate(config, folder, repaired_client(config, repair))
    before, after, identity = contexts_of(folder, DEFAULT_SIZES, untouched=held.untouched)
    found = audit_models(before, after, known=held(before, "zero-shot", seed))
    return {**found.to_dict(), "identity": identity}


def _posthoc(row: str, repair: str, seed: int, out: Path, held: Held) -> dict[str, Any]:
    """Repair a run's model, and audit it beside itself unrepaired on the same half of the tones."""
    folder = out / "runs" / f"{row}-{seed}"
    federate(configuration(row, seed), folder)
    before, after, identity = contexts_of(folder, HALF, untouched=held.untouched)
    zero, plain = held(before, "zero-shot", seed), held(after, row, seed)
    measures = measures_of(after, None, {})
    unrepaired = columns_from(measures, zero, plain, after.rng("changes"))
    told = POSTHOC[repair](after)
    found = audit_models(before, after, known=zero)
    return {
        **found.to_dict(),
        "identity": {**identity, **told},
        "unrepaired": [column.to_dict() for column in unrepaired],
    }


def run_cell(name: str, seed: int, out: Path, held: Held) -> dict[str, Any]:
    """Run or read one cell."""
    path = out / "cells" / f"{name}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    start = time.perf_counter()
    kind, row, *rest = cells()[name]
    found: dict[str, Any] = {"cell": name, "kind": kind, "seed": seed}
    if kind == "attack":
        found |= run_attack(row, seed, out / "runs" / f"{name}-{seed}", held.untouched)
    elif kind == "inference":
        folder = out / "runs" / f"plain-{seed}"
        federate(configuration("plain", seed), folder)
        found |= run_inference(row, folder)
    elif kind == "trained":
        found |= _trained(row, rest[0], seed, out, held)
    elif kind == "posthoc":
        found |= _posthoc(row, rest[0], seed, out, held)
    else:
        found |= _protection(row, seed, out, held)
    found["seconds"] = round(time.perf_counter() - start, 1)
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found
