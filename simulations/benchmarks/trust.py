"""Attacks beside pyautoattack (and foolbox), the whole audit's seconds, and its false alarms."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.trust.adversarial import apgd, correct, pgd
from fedvlm.trust.audit import audit_trust, contexts_of
from fedvlm.trust.columns_robustness import Robustness, Test
from fedvlm.trust.context import Sizes
from fedvlm.trust.fairness import gaps_to
from simulations.benchmarks._harness import Row, lower_is_better, median_seconds

_RADIUS = 0.25 / 255
_STEPS = 10
_IMAGES = 32
_DRAWS, _GROUPS, _CONCEPTS = 400, 5, 200


def _classifier(folder: Path) -> tuple[Callable, torch.Tensor, torch.Tensor]:
    """Return the run's model as a classifier of pixels, with images that it gets right."""
    _, after, _ = contexts_of(folder, Sizes(attacked=4 * _IMAGES))
    test = Test(after)
    images, labels, _ = Robustness(after, lambda: test).attacked()
    model = after.subject.classifier(test.texts)
    right = correct(model, images, labels)
    return model, images[right][:_IMAGES], labels[right][:_IMAGES]


def _attacks(folder: Path, say: Callable[[str], None]) -> list[Row]:
    model, images, labels = _classifier(folder)
    count = len(images)

    def success(found: torch.Tensor) -> float:
        return float((~correct(model, found, labels)).float().mean())

    def ours() -> torch.Tensor:
        return apgd(model, images, labels, _RADIUS, torch.Generator().manual_seed(0), _STEPS)

    rows = []
    from pyautoattack.autopgd_base import APGDAttack

    theirs = APGDAttack(
        model, n_iter=_STEPS, norm="Linf", eps=_RADIUS, loss="ce", seed=0, device="cpu"
    )
    say(f"APGD on {count} images of 96 pixels, ε = ¼/255, {_STEPS} steps")
    a, b = success(ours()), success(theirs.perturb(images, labels))
    rows.append(
        lower_is_better(
            "apgd_seconds_per_image",
            median_seconds(ours, 3) / count,
            "s",
            "pyautoattack",
            median_seconds(lambda: theirs.perturb(images, labels), 3) / count,
            f"success {a:.3f} here, {b:.3f} there",
        )
    )
    if importlib.util.find_spec("foolbox") is not None:
        rows.append(_foolbox(model, images, labels, success))
    return rows


def _foolbox(
    model: Callable,
    images: torch.Tensor,
    labels: torch.Tensor,
    success: Callable[[torch.Tensor], float],
) -> Row:
    import foolbox

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x)

    held = foolbox.PyTorchModel(Module().eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * _RADIUS / _STEPS, steps=_STEPS)

    def theirs() -> torch.Tensor:
        return attack(held, images, labels, epsilons=_RADIUS)[1]

    def ours() -> torch.Tensor:
        return pgd(model, images, labels, _RADIUS, torch.Generator().manual_seed(0), _STEPS)

    note = f"success {success(ours()):.3f} here, {success(theirs()):.3f} there"
    count = len(images)
    return lower_is_better(
        "pgd_seconds_per_image",
        median_seconds(ours, 3) / count,
        "s",
        "foolbox",
        median_seconds(theirs, 3) / count,
        note,
    )


def _false_alarms(say: Callable[[str], None]) -> Row:
    """Five equal groups: how often is a gap told, here and by an interval of largest − smallest."""
    from fairlearn.metrics import MetricFrame, selection_rate

    alarms, theirs, tried = 0, 0, 0
    for seed in range(_DRAWS):
        rng = np.random.default_rng(seed)
        difficulty = rng.beta(2, 2, _CONCEPTS)
        values = (rng.random((_GROUPS, _CONCEPTS)) < difficulty).astype(float).reshape(-1)
        groups = np.repeat(np.arange(_GROUPS), _CONCEPTS)
        concepts = np.tile(np.arange(_CONCEPTS), _GROUPS)
        found = gaps_to(values, groups, concepts, 0, rng)
        alarms += any(p <= 0.05 for _, p in found.values())
        if seed < 20:  # its bootstrap takes seconds a draw
            frame = MetricFrame(
                metrics=selection_rate,
                y_true=values,
                y_pred=values,
                sensitive_features=groups,
                n_boot=50,
                ci_quantiles=[0.025],
                random_state=seed,
            )
            theirs += float(frame.difference_ci()[0]) > 0.01
            tried += 1
        if seed % 100 == 0:
            say(f"false alarms: {seed}/{_DRAWS}")
    return Row(
        "false_alarm_rate",
        alarms / _DRAWS,
        "1",
        "fairlearn's bootstrap of largest − smallest, lower end above 0.01",
        theirs / tried,
        None,
        f"{_GROUPS} equal groups; {_DRAWS} draws here, {tried} there; at most 0.06 asked",
    )


def run(say: Callable[[str], None]) -> list[Row]:
    """Measure, and return the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("a federation of one round, to have a model to audit")
        config = config_from({"rounds": 1, "membership": "half", "references": False})
        simulate(config, out=folder)
        rows = _attacks(folder, say)
        say("the whole audit")
        start = time.perf_counter()
        found = audit_trust(folder)
        seconds = time.perf_counter() - start
    told = sum(column.why_not is None for column in found.columns)
    note = f"{told} of {len(found.columns)} measures with a number; at most 180 s asked"
    rows.append(Row("audit_seconds", seconds, "s", None, None, None, note))
    rows.append(_false_alarms(say))
    return rows
