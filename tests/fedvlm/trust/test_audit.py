"""The whole audit on models and data where one knows what must come out."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.seeds import ExperimentSeed
from fedvlm.trust import audit
from fedvlm.trust.adversarial import least_radius
from fedvlm.trust.audit import TONE_MEASURES, TrustAudit, audit_trust
from fedvlm.trust.columns_fairness import tone_columns
from fedvlm.trust.columns_robustness import Robustness
from fedvlm.trust.columns_safety import Safety
from fedvlm.trust.context import Sizes
from fedvlm.trust.corruption import corrupt
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.readings import Column, Reading, change_of
from fedvlm.trust.show import markdown, plot_pillar

SMALL = Sizes(designers=1, corrupted=4, altered=6, attacked=4, noise=8)


@pytest.fixture(scope="module")
def grouped_folder(tmp_path_factory, shapes_folder):
    """The shapes with two groups, a group that is the caption, and one of a single value."""
    folder = tmp_path_factory.mktemp("grouped")
    (folder / "images").symlink_to(shapes_folder / "images")
    with (shapes_folder / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "hospital", "same", "one"])
        writer.writeheader()
        for number, row in enumerate(rows):
            caption = row["caption"]
            hospital = "north" if number % 2 else "south"
            writer.writerow({**row, "hospital": hospital, "same": f"x {caption}", "one": "all"})
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, grouped_folder):
    out = tmp_path_factory.mktemp("run")
    config = config_from(
        {
            "data": str(grouped_folder),
            "clients": 2,
            "rounds": 1,
            "partition": "iid",
            "rank": 2,
            "references": False,
            "workers": 1,
        }
    )
    simulate(config, out=out)
    return out


@pytest.mark.slow
def test_a_folder_of_ones_own_is_audited_and_what_it_cannot_carry_is_said(run_folder):
    found = audit_trust(run_folder, sizes=SMALL, groups=("hospital", "same", "one", "no"))
    told = {column.name: column for column in found.columns}
    assert told["one_of_100"].after is not None
    assert "belong to the embedded data" in told["tone_gap"].why_not
    assert "on the unsafe list" in told["unsafe_queries"].why_not
    assert "label by another name" in told["group_same"].why_not
    assert "one group only" in told["group_one"].why_not
    assert "no column 'no'" in told["group_no"].why_not
    assert "membership = 'half'" in told["membership"].why_not
    for column in found.columns:
        assert "\n" not in (column.why_not or "")
    # The test part holds a dozen images: a group of fewer than 20 is never a number.
    gap = next(c for n, c in told.items() if n.startswith("group_hospital"))
    assert not gap.after.resolved
    assert "unresolved" in str(gap.to_dict()["after"])
    assert told["least_radius"].after is not None or told["least_radius"].why_not
    text = json.dumps(found.to_dict())
    assert "NaN" not in text
    assert "Infinity" not in text
    assert "not measured" in markdown(found)


@pytest.mark.slow
def test_the_command_leaves_its_files_and_ends_with_zero(run_folder):
    from typer.testing import CliRunner

    from fedvlm.cli import app

    found = CliRunner().invoke(app, ["trust", str(run_folder), "--group", "hospital"])
    assert found.exit_code == 0, found.output
    told = json.loads((run_folder / "trust.json").read_text())
    assert {c["pillar"] for c in told["columns"]} == {
        "utility",
        "fairness",
        "robustness",
        "safety",
        "privacy",
    }
    assert (run_folder / "trust.md").exists()
    assert "trust audit of" in found.output


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        audit_trust(tmp_path)


def test_readings_that_are_means_are_paired_by_concept():
    rng = np.random.default_rng(0)
    hard = {n: float(v) for n, v in enumerate(rng.random(100))}
    better = {n: v + 0.1 for n, v in hard.items()}
    one = Estimate(float(np.mean(list(hard.values()))), 0.4, 0.6, 100, 100)
    other = replace(one, value=one.value + 0.1)
    paired = change_of(Reading(one, hard), Reading(other, better), rng)
    apart = change_of(Reading(one), Reading(other), rng)
    assert paired.low > 0.099
    assert apart.low < 0 < apart.high
    assert paired.value == pytest.approx(apart.value)


def test_what_one_measure_cannot_tell_is_one_line_and_the_rest_goes_on(monkeypatch):
    """Images that a corruption can't take, and a model without gradients, stop nothing."""

    def blind(images):
        with torch.no_grad():
            return torch.stack([images.sum(dim=(1, 2, 3)), -images.sum(dim=(1, 2, 3))], dim=1)

    def attack():
        images = torch.full((4, 3, 8, 8), 0.5)
        least_radius(blind, images, torch.zeros(4, dtype=torch.int64), torch.Generator())

    def corruption():
        corrupt(np.zeros((2, 4, 4, 3), np.uint8), "blur", 1, ExperimentSeed(0))

    whole = Reading(Estimate(0.5, 0.4, 0.6, 50, 50))
    measures = {
        "corrupted": ("robustness", "corrupted", corruption),
        "least": ("robustness", "least", attack),
        "whole": ("safety", "whole", lambda: whole),
    }
    monkeypatch.setattr(audit, "measures_of", lambda *_: measures)
    found = audit.read_all(SimpleNamespace())
    assert "corruptions take uint8" in found["corrupted"]
    assert "no gradients" in found["least"]
    assert found["whole"] is whole
    assert all("\n" not in one for one in found.values() if isinstance(one, str))
    told = {c.name: c for c in audit.columns_from(measures, found, found, np.random.default_rng(0))}
    assert told["least"].why_not
    assert told["whole"].after is whole.estimate


@pytest.mark.parametrize("name", ["queries", "neutral", "listed", "caught", "tones", "disparity"])
def test_an_empty_unsafe_list_is_said_and_not_measured(name):
    part = np.arange(30)
    splits = SimpleNamespace(test=part, validation=part[:9], withheld=part[:0], retention=part[:0])
    data = SimpleNamespace(captions=tuple(f"thing {n}" for n in range(30)))
    context = SimpleNamespace(splits=splits, data=data, of_emoji=True)
    safety = Safety(context, lambda: None, {})
    measure = {
        "queries": lambda: safety.retrieved(True),
        "neutral": lambda: safety.retrieved(False),
        "listed": safety.listed_found,
        "caught": lambda: safety.filtered("caught"),
        "disparity": lambda: safety.filtered("disparity"),
        "tones": safety.false_alarm_gap,
    }[name]
    with pytest.raises(UnresolvedError, match="unsafe list"):
        measure()


def test_what_is_read_off_tones_is_known_by_name():
    """A reading that half of the tones changes must not be taken from the whole."""
    context = SimpleNamespace(of_emoji=True)
    assert {*tone_columns(context), "filter_tones"} == TONE_MEASURES


def test_attacks_go_to_images_that_the_model_gets_right():
    """And to as many of a weak model as of a strong one: else its number is never resolved."""
    data = SimpleNamespace(arrays=lambda rows, side: np.zeros((len(rows), 8, 8, 3), np.uint8))
    context = SimpleNamespace(
        sizes=Sizes(attacked=20),
        rng=lambda *purpose: np.random.default_rng(0),
        subject=SimpleNamespace(size=8),
        data=data,
    )
    shared = []
    for every in (10, 2):
        right = np.arange(400) % every == 0
        test = SimpleNamespace(
            rows=1000 + np.arange(400), right=np.arange(400) % 7, sure=lambda r=right: (None, r)
        )
        images, labels, rows = Robustness(context, lambda test=test: test).attacked()
        assert len(images) == len(labels) == len(rows) == 20
        assert right[rows - 1000].all()
        assert (labels.numpy() == test.right[rows - 1000]).all()
        shared.append(set(rows.tolist()))
    assert shared[0] & shared[1]
    test.sure = lambda: (None, np.zeros(400, bool))
    with pytest.raises(UnresolvedError, match="none can be broken"):
        Robustness(context, lambda: test).attacked()


def test_a_figure_shows_what_is_resolved_alone():
    kept = Estimate(0.3, 0.2, 0.4, 50, 50)
    few = Estimate(0.9, 0.8, 1.0, 5, 5)
    columns = (
        Column("safety", "a", "first", after=kept),
        Column("safety", "b", "second", after=few),
        Column("safety", "c", "third", why_not="no"),
    )
    ax = plot_pillar(TrustAudit(columns, {}), "safety")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first"]


def test_an_embedding_is_made_once_and_never_outlives_a_change_of_weights():
    """Rows and captions of one set of weights are kept; a write to any weight makes them anew."""
    from torch import nn

    from fedvlm.trust.subject import _Kept

    vlm = nn.Linear(2, 2)
    vlm.embedding_dim = 2
    model, kept, asked = SimpleNamespace(vlm=vlm), _Kept(), []
    data = _Sized()

    def images(rows):
        asked.append(rows.tolist())
        return np.repeat(rows[:, None], 2, axis=1) * float(vlm.weight.detach()[0, 0])

    with torch.no_grad():
        vlm.weight.fill_(1.0)
    found = kept.images(model, data, np.array([3, 1, 3]), images)
    assert found[:, 0].tolist() == [3.0, 1.0, 3.0]
    kept.images(model, data, np.array([1, 2]), images)
    assert asked == [[1, 3], [2]]
    texts = kept.texts(model, ["b", "a", "b"], lambda some: np.ones((len(some), 2)))
    assert texts.shape == (3, 2)
    with torch.no_grad():
        vlm.weight.mul_(2.0)
    assert kept.images(model, data, np.array([3]), images)[0, 0] == 6.0
    again = kept.texts(model, ["a"], lambda some: 5 * np.ones((len(some), 2)))
    assert again[0, 0] == 5.0


class _Sized:
    fingerprint = "x"

    def __len__(self):
        return 9
