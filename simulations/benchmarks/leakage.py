"""Shadows beside one-by-one training, and epsilon bounds beside the uncorrected one."""

import time
from collections.abc import Callable

import numpy as np
import torch
from dp_accounting import GaussianDpEvent
from torch.nn import functional as F

from fedvlm.canaries import Canaries
from fedvlm.leakage.conformance import check_mechanism
from fedvlm.leakage.epsilon import (
    clopper_pearson_bonferroni,
    clopper_pearson_split,
    epsilon_from_rates,
    gaussian_dp,
    gaussian_epsilon,
)
from fedvlm.leakage.intervals import clopper_pearson_upper
from fedvlm.leakage.one_run import one_run, one_run_f_dp, refutes_profile
from fedvlm.leakage.released import Released
from fedvlm.leakage.run_checks import noise_checks
from fedvlm.leakage.shadows import (
    ShadowSettings,
    batch_order,
    draw_masks,
    fresh_shadows,
    train_linear_shadows,
    train_shadows,
)
from fedvlm.privacy import noise_multiplier_for
from fedvlm.privacy.profile import privacy_profile
from simulations.benchmarks._harness import Row, lower_is_better

_EXAMPLES, _WIDTH, _CLASSES = 1000, 512, 10
_DRAWS, _SCORES, _DELTA = 400, 1000, 1e-5
_LORA = ShadowSettings(rank=4, epochs=2, batch_size=25)
_LINEAR = ShadowSettings(epochs=2, batch_size=100)


def _cpu_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _lora_one_by_one(images, texts, masks) -> None:
    """Train each LoRA shadow on its own examples, as audit tools do."""
    rng = np.random.default_rng(0)
    start = fresh_shadows(len(masks), _WIDTH, _LORA.rank, rng)
    order = batch_order(len(images), _LORA, rng)
    for number, mask in enumerate(torch.from_numpy(masks)):
        a, b, c, e = (f[number].clone().requires_grad_() for f in start.tensors)
        optimizer = torch.optim.SGD([a, b, c, e], lr=_LORA.learning_rate, momentum=_LORA.momentum)
        for step in order:
            rows = step[mask[step]]
            x, t = images[rows], texts[rows]
            left = F.normalize(x + (x @ a) @ b, dim=1)
            logits = _LORA.scale * left @ F.normalize(t + (t @ c) @ e, dim=1).T
            right = torch.arange(len(rows))
            optimizer.zero_grad()
            (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)).div(2).backward()
            optimizer.step()


def _heads_one_by_one(features, labels, masks) -> None:
    """Train each linear head on its own examples."""
    order = batch_order(len(features), _LINEAR, np.random.default_rng(0))
    for mask in torch.from_numpy(masks):
        head = torch.nn.Linear(_WIDTH, _CLASSES)
        optimizer = torch.optim.SGD(
            head.parameters(), lr=_LINEAR.learning_rate, momentum=_LINEAR.momentum
        )
        for step in order:
            rows = step[mask[step]]
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()


def _shadow_rows(progress: Callable[[str], None]) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(_EXAMPLES, _WIDTH, generator=generator), dim=1)
    noise = F.normalize(torch.randn(_EXAMPLES, _WIDTH, generator=generator), dim=1)
    texts = F.normalize(images + 0.5 * noise, dim=1)
    labels = torch.arange(_EXAMPLES) % _CLASSES
    rows = []
    for count in (64, 256):
        progress(f"{count} shadows")
        masks = draw_masks(count, _EXAMPLES, np.random.default_rng(1))
        setting = f"{count} shadows, {_EXAMPLES} x {_WIDTH} features"
        pairs = (
            (
                "shadow_training_cpu_seconds",
                lambda m=masks: train_shadows(images, texts, m, _LORA, np.random.default_rng(0)),
                lambda m=masks: _lora_one_by_one(images, texts, m),
                f"{setting}, LoRA r=4, InfoNCE, batch 25",
            ),
            (
                "shadow_linear_cpu_seconds",
                lambda m=masks: train_linear_shadows(
                    images, labels, _CLASSES, m, _LINEAR, np.random.default_rng(0)
                ),
                lambda m=masks: _heads_one_by_one(images, labels, m),
                f"{setting}, {_CLASSES} classes, batch 100",
            ),
        )
        for name, ours, peer, note in pairs:
            rows.append(
                lower_is_better(
                    name, _cpu_seconds(ours), "s", "one by one", _cpu_seconds(peer, 1), note
                )
            )
    return rows


def _uncorrected(scores: np.ndarray, inside: np.ndarray) -> float:
    """Clopper–Pearson at the best of all thresholds, as if it had been the only one.

    As TensorFlow Privacy's `EpsilonLowerBound` has it by default: the level is shared by the two
    rates, and at every threshold four ratios are tried: TP/FP, TN/FN, and both upside down.
    """
    found = []
    for side in (inside, ~inside):
        members, others = np.sort(scores[side]), np.sort(scores[~side])
        missed = clopper_pearson_upper(
            np.searchsorted(members, scores, side="left"), len(members), 0.025
        )
        alarms = len(others) - np.searchsorted(others, scores, side="left")
        false = clopper_pearson_upper(alarms, len(others), 0.025)
        found += [epsilon_from_rates(false, missed, 0.0), epsilon_from_rates(missed, false, 0.0)]
    return float(np.max(found))


_Bound = Callable[[np.ndarray, np.ndarray, np.random.Generator], float]
_BOUNDS: dict[str, _Bound] = {
    "clopper-pearson-bonferroni": lambda s, m, g: (
        clopper_pearson_bonferroni(s[m], s[~m], _DELTA).value
    ),
    "clopper-pearson-split": lambda s, m, g: clopper_pearson_split(s[m], s[~m], g, _DELTA).value,
    "gaussian-dp": lambda s, m, g: gaussian_dp(s[m], s[~m], _DELTA).value,
    "one-run": lambda s, m, g: one_run(s, m, _DELTA).value,
    "one-run-f-dp": lambda s, m, g: one_run_f_dp(s, m, _DELTA).value,
    "one-run-gaussian": lambda s, m, g: one_run_f_dp(s, m, _DELTA, gaussian=True).value,
}


def _false_alarm_rows(progress: Callable[[str], None]) -> list[Row]:
    alarms = dict.fromkeys([*_BOUNDS, "uncorrected"], 0)
    rng = np.random.default_rng(0)
    for number in range(_DRAWS):
        if number % 100 == 0:
            progress(f"null draw {number} of {_DRAWS}")
        scores, inside = rng.normal(size=_SCORES), rng.random(_SCORES) < 0.5
        for name, bound in _BOUNDS.items():
            alarms[name] += bound(scores, inside, rng) > 0
        alarms["uncorrected"] += _uncorrected(scores, inside) > 0
    peer = alarms.pop("uncorrected") / _DRAWS
    note = f"nominal 5 %, {_DRAWS} draws of {_SCORES} scores"
    rows = []
    for name, count in alarms.items():
        rate = count / _DRAWS
        rows.append(
            lower_is_better(
                "null_false_alarm_rate",
                rate,
                "1",
                "Clopper–Pearson at the best of all thresholds, uncorrected",
                peer,
                f"{name}; {note}",
            )
        )
    return rows


def _power_rows(progress: Callable[[str], None]) -> list[Row]:
    progress("power")
    mu, rng, draws = 1.0, np.random.default_rng(1), 20
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        inside = rng.random(2000) < 0.5
        scores = rng.normal(size=2000) + mu * inside
        for name, bound in _BOUNDS.items():
            found.setdefault(name, []).append(bound(scores, inside, rng))
    note = f"median of {draws} on 2000 scores; the truth is {gaussian_epsilon(mu, _DELTA):.3f}"
    return [
        Row("bound_power", float(np.median(values)), "1", note=f"{name}; {note}")
        for name, values in found.items()
    ]


def _flag_rows(progress: Callable[[str], None]) -> list[Row]:
    """How often a run whose noise is halved is flagged, and how often an honest one.

    Canaries are in by fair coins, in sums of Gaussian noise; two tests that hold at 5 %: one-run
    f-DP against the mechanism's privacy profile, whatever the mechanism does, and the check of the
    stated noise and clip norm, three rounds.
    """
    rows, rng, size, draws = [], np.random.default_rng(2), 4096, 40
    for epsilon, count in ((8.0, 64), (1.0, 1000), (1.0, 10_000)):
        progress(f"flags at epsilon {epsilon:g}, {count} canaries")
        z = noise_multiplier_for(GaussianDpEvent, 1, epsilon, _DELTA)
        profile = privacy_profile([(GaussianDpEvent(z), 1)])
        for factor, name in ((0.5, "noise halved"), (1.0, "honest")):
            hits = 0
            for _ in range(draws):
                inside = rng.random(count) < 0.5
                scores = inside + factor * z * rng.normal(size=count)
                hits += refutes_profile(scores, inside, profile, 0.05)
            note = f"{name}; one-run f-DP on the profile, {count} canaries, epsilon {epsilon:g}"
            rows.append(Row("flag_rate", hits / draws, "1", note=f"{note}, {draws} draws"))
    z, rounds, count = 1.04, 3, 64  # epsilon 8 at delta 1e-5 over three rounds
    for factor, clip_norm, name in (
        (0.5, 1.0, "noise halved"),
        (1.0, 10.0, "clip off, canaries of 10 clip norms"),
        (1.0, 1.0, "honest"),
    ):
        progress(f"mechanism checks: {name}")
        hits = 0
        for _ in range(draws):
            canaries = Canaries.draw(count, size, rng)
            noise = factor * z * rng.normal(size=(rounds, size))
            totals = canaries.updates(clip_norm).sum(axis=0) + noise
            hits += check_mechanism(totals, canaries, 1.0, z).violated
        note = f"{name}; stated noise and clip, {count} canaries, epsilon 8, {rounds} rounds"
        rows.append(Row("flag_rate", hits / draws, "1", note=f"{note}, {draws} draws"))
    return rows


def _transcript_rows(progress: Callable[[str], None]) -> list[Row]:
    """How often the checks of a transcript tell a bent noise, where updates were seen or not."""
    rows, size, rounds, draws = [], 4096, 3, 20
    for seen in (True, False):
        progress(f"transcript checks, updates {'seen' if seen else 'not seen'}")
        names = ("honest", "90 %", "off at last", "same", "uniform")
        hits: dict[str, int] = {name: 0 for name in names}
        rng = np.random.default_rng(3)
        for _ in range(draws):
            signal = 3 * rng.normal(size=(rounds, size)) / size**0.5
            noise = rng.normal(size=(rounds, size))
            bent = {
                "honest": noise,
                "90 %": 0.9 * noise,
                "off at last": noise * (np.arange(rounds) < rounds - 1)[:, None],
                "same": np.repeat(noise[:1], rounds, axis=0),
                "uniform": rng.uniform(-(3**0.5), 3**0.5, (rounds, size)),
            }
            for name, one in bent.items():
                sums, cut = (signal, np.zeros_like(signal)) if seen else (None, None)
                ones = np.ones(rounds)
                released = Released(signal + one, sums, cut, ones, ones, None, 1.0)
                hits[name] += any(check.violated for check in noise_checks(released, 0.01))
        for name, count in hits.items():
            note = f"noise {name}; transcript, updates {'seen' if seen else 'not seen'}"
            note = f"{note}, {rounds} rounds of {size}, {draws} draws, nominal 5 %"
            rows.append(Row("flag_rate", count / draws, "1", note=note))
    return rows


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure shadow training, false alarms and power."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _shadow_rows(progress) + _false_alarm_rows(progress)
        return rows + _power_rows(progress) + _flag_rows(progress) + _transcript_rows(progress)
    finally:
        torch.set_num_threads(threads)
