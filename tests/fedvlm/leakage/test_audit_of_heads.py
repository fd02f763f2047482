"""What an attacker gets of a head: terms, canaries, and features that stand there in the clear."""

import csv

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.federation.head_round import summed
from fedvlm.federation.task import load_task
from fedvlm.leakage.audit_run import audit_run
from fedvlm.leakage.head_terms import read_feature, term_alignment
from tests.fedvlm.federation.heads_base import SHARED, two_classes

KINDS = ["prototypes", "head"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A federation over a folder in which each image has a caption of its own."""
    folder = tmp_path_factory.mktemp("own") / "data"
    settings = two_classes(folder, count=90)
    captions = [f"patient {number} of ninety" for number in range(90)]
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        table.writerows([f"{n:04d}.png", caption] for n, caption in enumerate(captions))
    return settings | {
        "head_captions": "\n".join(captions),
        "membership": "half",
        "transcript": True,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_terms_by_hand_are_what_a_client_sums(base, kind):
    task = load_task(config_from(base | {"adapter": kind}))
    task.reset()
    rng = np.random.default_rng(0)
    if kind == "head":
        task.view.write(0.1 * rng.normal(size=task.view.size).astype(np.float32))
    adapter, rows = task.view.read(), task.rows(0)
    total = summed(task, rows).astype(np.float32)
    other = rng.normal(size=total.size).astype(np.float32)
    dots, norms = term_alignment(task, adapter, rows, np.stack([total, other]))
    assert dots[0].sum() == pytest.approx(float(total @ total), rel=1e-4)
    assert dots[1].sum() == pytest.approx(float(other @ total), rel=1e-3, abs=1e-3)
    assert (norms <= 1).all()


def test_a_prototype_of_a_caption_that_one_image_has_is_that_images_feature(base):
    config = config_from(base)
    simulate(config)
    task = load_task(config)
    members = np.concatenate(task.splits.clients)
    others = np.concatenate(task.splits.non_members)
    released = task.view.read()
    assert np.allclose(read_feature(task, released, members), 1, atol=1e-5)
    assert np.allclose(read_feature(task, released, others), 0, atol=1e-5)
    private = config_from(base | SHARED | {"epsilon": 1.0, "simulated_noise": True})
    simulate(private)
    noised = read_feature(load_task(private), load_task(private).view.read(), members)
    assert abs(noised.mean()) < 0.3  # of one image beside noise of three images' length a direction


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", ["none", "own", "shared"])
def test_every_vantage_of_both_heads_is_audited_with_canaries(base, kind, noise, tmp_path):
    private = {"own": SHARED | {"noise": "own", "protect": "plain"}, "shared": SHARED}
    settings = base | {"adapter": kind, "canaries": 16} | private.get(noise, {})
    simulate(config_from(settings), out=tmp_path)
    audit = audit_run(tmp_path)
    seen = {one.vantage for one in audit.results}
    assert seen >= {"V2", "V3", "V4", "V5"}
    assert ("V1" in seen) == (noise != "shared")
    assert audit.canaries is not None
    assert not audit.refuted
    found = {(one.vantage, one.attack): one for one in audit.reconstructions}
    told = found["V4", "feature-of-caption"]
    if noise == "none" and kind == "prototypes":
        assert told.members > 0.95  # canaries stand in the sums too
        assert told.low > 0.9
        for row in audit.canaries.results:  # without noise each planted direction stands out
            assert row.auc.value > 0.95
    if noise != "none":
        assert audit.checks is not None
        assert not audit.checks.violated
        names = [check.name for check in audit.checks.checks]
        assert "noise by round and place" in names
