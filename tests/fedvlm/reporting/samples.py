"""Results, audits and comparisons as the library writes them, without the hours of computing."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from fedvlm.config import config_from
from fedvlm.federation.result import Result
from fedvlm.leakage.audit import audit_attacks
from fedvlm.leakage.audit_run import RunAudit
from fedvlm.leakage.reconstruction import Rebuilt
from fedvlm.leakage.run_checks import Check, RunChecks
from fedvlm.leakage.units import Claim, Interval, Unit
from fedvlm.reporting.comparison import Cell, Column, Comparison, Grid, Row

VOID = {"meta", "br", "link", "img", "hr"}
PROTECTIONS = ("plain", "secagg", "secagg-active", "he")
PARTS = {"test": 558, "ood": 551, "withheld": 354, "retention": 500}


def entry(number: int, values: dict[str, float]) -> dict:
    """Return a round's entry as the evaluator and the strategy write it."""
    out: dict = {"round": number}
    for part, value in values.items():
        out |= {
            f"{part}_one_of_100": value,
            f"{part}_one_of_100_low": value - 0.04,
            f"{part}_one_of_100_high": value + 0.04,
            f"{part}_candidates": 83 if part == "withheld" else 100,
            f"{part}_recall_at_1": value / 2,
        }
    shift = values.get("test", 0.0)
    out |= {f"domain_{name}": shift + k / 50 for k, name in enumerate(("noto", "twemoji", "flat"))}
    if number:
        out |= {
            "clients": 10,
            "upload_bytes_per_client": 776537,
            "download_bytes_per_client": 776601,
            "client_seconds": 1.1,
            "server_seconds": 0.0065,
            "train_loss": 1.2 / number,
        }
    return out


def result(settings: dict | None = None, *, after: float = 0.62, **changes) -> Result:
    """Return a run's result over six rounds."""
    config = config_from(settings or {})
    steps = np.linspace(0, 1, 7)
    rounds = [
        entry(
            k,
            {
                "test": 0.25 + (after - 0.25) * t,
                "validation": 0.2 + 0.3 * t,
                "ood": 0.11 + 0.18 * t,
                "withheld": 0.25 + 0.04 * t,
                "retention": 0.61 - 0.13 * t,
            },
        )
        for k, t in enumerate(steps)
    ]
    summary = {
        "zero_shot": 0.25,
        "local_only": 0.289,
        "local_only_best": 0.364,
        "federated": rounds[-1]["test_one_of_100"],
        "central": 0.71,
        "ood_zero_shot": 0.11,
        "ood_federated": rounds[-1]["ood_one_of_100"],
        "ood_central": 0.352,
        "withheld_zero_shot": 0.25,
        "withheld_federated": rounds[-1]["withheld_one_of_100"],
        "retention_zero_shot": 0.61,
        "retention_federated": rounds[-1]["retention_one_of_100"],
    }
    privacy = None
    if config.privacy.dp != "none":
        privacy = {
            "unit": "example" if config.privacy.dp == "example" else "client",
            "neighboring_relation": "add-or-remove",
            "epsilon": 7.996,
            "delta": 1e-5,
            "simulated_noise": config.privacy.simulated_noise,
            "clip_norm": 1.0,
            "noise_multiplier": 1.5185303397108976,
            "sample_rate": 1.0,
            "epsilon_by_client": {"1": 7.996},
            "outside_epsilon": [],
        }
    told = {
        "summary": summary,
        "rounds": rounds,
        "privacy": privacy,
        "protection": {
            "name": config.protection.protect,
            "mode": config.protection.protect,
            "parameters": {"server_sees": "x", "levels": 858993460, "clip": "none"},
        },
        "leakage": [],
        "config": config.to_dict(),
        "versions": {"fedvlm": "0.1.0", "torch": "2.13.0"},
        "seed": config.training.seed,
        "data": {
            "name": "emoji",
            "pairs": 8712,
            "metric": "one_of_100",
            "parts": PARTS,
            "fingerprint": "6cfc0bcf" * 8,
        },
        "adapter": {"kind": "lora", "parameters": 194048, "schema": "1cb8b848" * 8},
        "seconds": {"prepare": 72.1, "federate": 44.9, "references": 30.0},
    }
    return Result(**(told | changes))


def audit_of(found: Result, seen: str = "V1", strong: float = 2.5) -> RunAudit:
    """Return an audit whose attacks are strong where the server looks."""
    rng = np.random.default_rng(0)
    inside = rng.random(600) < 0.5
    claim = None if found.privacy is None else Claim(7.996, 1e-5, Unit.SAMPLE)
    results = []
    for vantage in ("V1", "V2", "V3", "V4", "V5"):
        if vantage == "V1" and seen != "V1":
            continue
        power = strong if vantage == seen else 0.4
        # V5 sees just what V4 sees: the two curves are one.
        noise = np.random.default_rng(7 if vantage in ("V4", "V5") else int(vantage[1]))
        scores = {
            name: noise.normal(size=600) + share * power * inside
            for name, share in (("delta-margin", 1.0), ("loss", 0.6), ("attack-p", 0.3))
        }
        results += audit_attacks(scores, inside, claimed=claim, vantage=vantage, coins="fair")
    checks = RunChecks(
        (Check("noise", False, "std 1.00 of 1.00 stated", "less than 2 % missing", 0.4),),
        ("draws: the server's coins are secret",),
        0.95,
    )
    return RunAudit(
        results=results,
        absent={"V1": "the server saw only sums"} if seen != "V1" else {},
        baseline=Interval(0.5, 0.45, 0.55, 0.999),
        claim=claim,
        identity={"seed": 0, "backbone": "ab" * 32},
        alpha=0.05,
        reconstructions=(
            Rebuilt("V1", "gradient-inversion", "cosine", 0.41, 0.12, 0.29, 0.2, 0.38, 0.95, 40),
        ),
        checks=checks if found.privacy else None,
    )


def trust_json() -> dict:
    """Return what a trust audit writes."""

    def one(value: float) -> dict:
        return {
            "value": value,
            "low": value - 0.05,
            "high": value + 0.05,
            "rows": 90,
            "clusters": 40,
        }

    columns = [
        {
            "pillar": pillar,
            "name": name,
            "title": title,
            "primary": primary,
            "before": one(before),
            "after": one(after),
            "change": one(after - before),
        }
        for pillar, name, title, primary, before, after in (
            ("utility", "one_of_100", "test, one of 100", False, 0.25, 0.62),
            ("fairness", "tone_gap", "gap, default − dark", True, 0.05, 0.12),
            ("robustness", "overconfidence", "confidence − accuracy", True, 0.1, 0.2),
            ("safety", "backdoor", "patch answered", True, 0.01, 0.02),
        )
    ]
    columns.append(
        {"pillar": "privacy", "name": "m", "title": "membership AUC", "why_not": "no halves kept"}
    )
    return {"columns": columns, "holm": {"tone_gap": 0.03}, "identity": {"seed": 0}}


def folder_of(
    place: Path, found: Result, audit: RunAudit | None = None, trust: bool = True
) -> Path:
    """Write a run's folder as the commands do."""
    from dataclasses import replace

    place.mkdir(parents=True, exist_ok=True)
    if audit is not None:
        found = replace(found, leakage=audit.rows())
        (place / "audit.json").write_text(json.dumps(audit.to_dict()))
    if trust:
        (place / "trust.json").write_text(json.dumps(trust_json()))
    found.save(place)
    return place


def comparison() -> Comparison:
    """Return a comparison with every kind of cell."""
    names = (
        "none",
        "secure aggregation",
        "active secure aggregation",
        "sums under HE",
        *(f"{kind}, ε = {e}" for kind in ("client DP", "example DP, own noise") for e in (8, 3, 1)),
    )
    rows = []
    for k, name in enumerate(names):
        value = 0.62 if k < 4 else 0.26 + 0.02 * (10 - k)
        leak = (0.96, 0.61, 0.6, 0.6)[k] if k < 4 else 0.52
        cells: dict[str, Cell | None] = {
            "accuracy": Cell(value, value - 0.04, value + 0.04),
            "gain_kept": Cell((value - 0.25) / 0.37),
            "auc_V1": Cell(leak, leak - 0.03, leak + 0.03, note="delta-margin") if k == 0 else None,
            "auc_V2": Cell(min(leak, 0.7)),
            "auc_V4": Cell(0.6, 0.55, 0.65),
            "tpr_V1": Cell(0.4, 0.2, 0.6) if k == 0 else None,
            "epsilon": Cell(8.0) if k > 3 else None,
            "upload_bytes": Cell(776537.0 * (1, 2, 2.1, 9)[k] if k < 4 else 776537.0),
            "client_s": Cell(1.13 + k),
        }
        if k == 5:
            cells["accuracy"] = Cell(failed="DropoutError: 2 of 10 nodes came")
        rows.append(Row(name, "lora", cells))
    columns = (
        Column("accuracy", "accuracy", "fraction", "high", "On the test."),
        Column("gain_kept", "gain kept", "fraction", "high"),
        Column("auc_V1", "AUC V1", "fraction", "low"),
        Column("auc_V2", "AUC V2", "fraction", "low"),
        Column("auc_V4", "AUC V4", "fraction", "low"),
        Column("tpr_V1", "TPR@1 % V1", "fraction", "low"),
        Column("epsilon", "ε claimed", "", "low"),
        Column("upload_bytes", "upload", "bytes", "low"),
        Column("client_s", "client", "s", "low"),
        Column("never", "never measured", "s", "low"),
    )
    inference = Grid(
        (
            Column("agreement", "top-1 agreement", "fraction", "high"),
            Column("latency", "latency here", "s", "low"),
            Column("learns", "who learns what", "text"),
        ),
        (
            Row("plaintext", "", {"latency": Cell(0.012), "learns": Cell("the owner learns all")}),
            Row("SMPC", "", {"agreement": Cell(1.0), "latency": Cell(21.0)}),
        ),
    )
    return Comparison(
        columns,
        tuple(rows),
        inference,
        {"zero_shot": 0.25, "central": 0.71},
        config_from({"rounds": 4}).to_dict(),
        {"fedvlm": "0.1.0"},
        (0, 1, 2),
        "fedvlm compare simulations/configs/compare.toml --out DIR",
        {"cells": 900.0},
    )


class Parsed(HTMLParser):
    """A page, its elements balanced, with its words and attributes.

    Attributes:
        words: Text outside of style and script.
        attributes: Element, name and value of every attribute.
        scripts: How many script elements there are.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts = 0
        self._open: list[str] = []
        self.feed(page)
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.scripts += tag == "script"
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open[-1] == tag, (tag, self._open)
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script") and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.words).replace("\u202f", " ")
