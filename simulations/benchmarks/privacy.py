"""Differential privacy: a DP-SGD step beside Opacus, noise and clip beside Flower's wrappers."""

import logging
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)
from numpy.typing import NDArray

from fedvlm.federation import InProcessGrid
from fedvlm.privacy import SecureNoise
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, clip, release_round
from fedvlm.privacy.skellam import plan_skellam
from simulations.benchmarks import _dpsgd_step, _private_heads
from simulations.benchmarks._harness import Row, lower_is_better

SIZE = 20_000
CLIENTS = 10
CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0
NOISE_ROUNDS = 20
CLIP_ROUNDS = 120
_FLOAT_BITS = 32.0


def _steps(progress: Callable[[str], None]) -> list[Row]:
    progress("one DP-SGD step on the embedded model's LoRA")
    torch.set_num_threads(1)
    found = _dpsgd_step.measure(progress)
    seconds, peak = found.pop("ours")
    secure_seconds, _ = found.pop("ours, secure noise")
    fastest = min(found, key=lambda mode: found[mode][0])
    leanest = min(found, key=lambda mode: found[mode][1])
    note = f"batch {_dpsgd_step.BATCH}, CPU seconds of one thread, noise from a generator"
    return [
        lower_is_better(
            "dpsgd_step_seconds",
            seconds,
            "s",
            f"Opacus, fastest mode ({fastest})",
            found[fastest][0],
            note,
        ),
        lower_is_better(
            "dpsgd_step_secure_noise_seconds",
            secure_seconds,
            "s",
            f"Opacus, fastest mode ({fastest})",
            found[fastest][0],
            "our noise from the OS's entropy, Opacus' still from a generator",
        ),
        lower_is_better(
            "dpsgd_step_peak_bytes",
            peak,
            "B",
            f"Opacus, leanest mode ({leanest})",
            found[leanest][1],
            "most bytes that tensors held at a time beyond the start",
        ),
    ]


def _updates() -> tuple[list[NDArray[np.float32]], list[float]]:
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=SIZE).astype(np.float32) for _ in range(CLIENTS)]
    return updates, [float(2**k) for k in range(CLIENTS)]  # examples: 1, 2, … 512


def _flower_round(
    wrapper: FedAvg, updates: list[NDArray[np.float32]], examples: list[float], number: int
) -> NDArray[np.float64]:
    """Feed a wrapper one round over a global adapter of zeros; returns the new adapter."""
    size = len(updates[0])
    start = ArrayRecord({"adapter": Array(np.zeros(size, dtype=np.float32))})

    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), len(updates))
    replies = []
    for message in wrapper.configure_train(number, start, ConfigRecord(), grid):
        index = grid.node_ids.index(message.metadata.dst_node_id)
        content = RecordDict(
            {
                "arrays": ArrayRecord({"adapter": Array(updates[index])}),
                "metrics": MetricRecord({"num-examples": examples[index]}),
            }
        )
        replies.append(Message(content, reply_to=message))
    if len(replies) != len(updates):
        raise RuntimeError(f"the wrapper asked {len(replies)} of {len(updates)} clients")
    arrays, _ = wrapper.aggregate_train(number, replies)
    if arrays is None:
        raise RuntimeError("the wrapper gave no aggregate")
    return arrays["adapter"].numpy().astype(np.float64)


def _inner() -> FedAvg:
    return FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2
    )


def _noise_error(progress: Callable[[str], None]) -> Row:
    """Compare measured noise with z times the sensitivity of the mean, weights being unequal."""
    progress("noise of the mean with unequal weights")
    updates, examples = _updates()
    clipped = [clip(update, CLIP_NORM) for update in updates]
    weights = [w / max(examples) for w in examples]
    noise = SecureNoise()
    mechanism = ClientMechanism(CLIP_NORM, NOISE_MULTIPLIER)
    exact = sum((w * u for w, u in zip(weights, clipped, strict=True)), np.zeros(SIZE)) / CLIENTS
    ours = [
        release_round(mechanism, list(updates), weights, SIZE, CLIENTS, noise).mean - exact
        for _ in range(NOISE_ROUNDS)
    ]
    assumed = NOISE_MULTIPLIER * CLIP_NORM * max(weights) / CLIENTS
    our_error = abs(float(np.std(np.concatenate(ours))) / assumed - 1)

    total = sum(examples)
    mean = sum((w * u for w, u in zip(examples, clipped, strict=True)), np.zeros(SIZE)) / total
    theirs = []
    for number in range(1, NOISE_ROUNDS + 1):
        wrapper = DifferentialPrivacyServerSideFixedClipping(
            _inner(), NOISE_MULTIPLIER, CLIP_NORM, CLIENTS
        )
        theirs.append(_flower_round(wrapper, updates, examples, number) - mean)  # pyright: ignore
    # One client moves FedAvg's mean by C·max w/Σw, whatever the wrapper divides by.
    needed = NOISE_MULTIPLIER * CLIP_NORM * max(examples) / total
    their_error = abs(float(np.std(np.concatenate(theirs))) / needed - 1)
    return lower_is_better(
        "noise_std_error",
        our_error,
        "1",
        "Flower's server-side fixed clipping",
        their_error,
        f"relative; {NOISE_ROUNDS * SIZE} draws, weights 1 to 512",
    )


def _clip_error(progress: Callable[[str], None]) -> Row:
    """Let the clip find the median norm, and compare with it."""
    progress("adaptive clipping")
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0.0, 0.5, 100)
    directions = rng.normal(size=(100, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    updates = [(n * d).astype(np.float32) for n, d in zip(norms, directions, strict=True)]
    truth = float(np.quantile(norms, 0.5))
    adaptive, noise, clip_norm = (
        AdaptiveClip(quantile=0.5, rate=0.2, bit_std=5.0),
        SecureNoise(),
        0.1,
    )
    ours = []
    for _ in range(CLIP_ROUNDS):
        mechanism = ClientMechanism(clip_norm, NOISE_MULTIPLIER, 1.0, adaptive)
        released = release_round(mechanism, list(updates), [1.0] * 100, 8, 100, noise)
        clip_norm = released.next_clip_norm
        ours.append(clip_norm)
    wrapper = DifferentialPrivacyServerSideAdaptiveClipping(
        _inner(), NOISE_MULTIPLIER, 100, 0.1, 0.5, 0.2, 5.0
    )
    theirs = []
    for number in range(1, CLIP_ROUNDS + 1):
        _flower_round(wrapper, updates, [1.0] * 100, number)  # pyright: ignore
        theirs.append(wrapper.clipping_norm)

    def error(path: list[float]) -> float:
        # The clip keeps moving with its noise: its final level is the median of the last quarter.
        return abs(float(np.median(path[-CLIP_ROUNDS // 4 :])) / truth - 1)

    return lower_is_better(
        "adaptive_clip_error",
        error(ours),
        "1",
        "Flower's server-side adaptive clipping",
        error(theirs),
        f"relative to the median norm, after {CLIP_ROUNDS} rounds from 0.1",
    )


def _codec(progress: Callable[[str], None]) -> Row:
    progress("bits on the wire under distributed DP")
    size = 1 << 18
    mechanism = plan_skellam(1.0, 4.0, size, 100, 100)
    lanes = mechanism.lanes()
    bits = 8 * 8 * lanes.words(mechanism.dimension) / size
    share = mechanism.rounded_norm / (mechanism.scale * mechanism.clip_norm)
    return lower_is_better(
        "codec_overhead_bits",
        bits,
        "bits",
        "float32",
        _FLOAT_BITS,
        f"a coordinate, d = 2^18, n = 100, z = 4; rounding widens the sensitivity by a factor "
        f"{share:.5f}; lanes of {lanes.lane} bits",
    )


def _heads(progress: Callable[[str], None]) -> list[Row]:
    progress("heads: shared noise, and bytes of one round")
    return [_private_heads.shared_noise_gain(), _private_heads.one_round_bytes()]


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure everything and return the rows."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    return [
        *_steps(progress),
        _noise_error(progress),
        _clip_error(progress),
        _codec(progress),
        *_heads(progress),
    ]
