"""The trust audit of models that answer: known answers on told words, and a small run's audit."""

import csv
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.splits import Splits
from fedvlm.errors import ConfigError, DataError
from fedvlm.federation import simulate
from fedvlm.models import load_any
from fedvlm.seeds import ExperimentSeed
from fedvlm.trust.answering_audit import answering_measures, membership_of_answers
from fedvlm.trust.answering_context import Answering, AnsweringSizes
from fedvlm.trust.answering_fairness import answering_fairness, twin_rows
from fedvlm.trust.answering_measures import answering_safety, unseen_domain
from fedvlm.trust.audit import audit_trust
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.instructions import Instruction
from fedvlm.trust.target import Target

HANDS = ("one", "two", "foreign")
NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Told(Answering):
    """Triples whose answers are told by a function of caption and hand, and no model."""

    say: object = None

    def answers(self, rows):
        data = self.data
        return [self.say(data.captions[r], data.domain_names[data.domains[r]]) for r in rows]

    def right(self, rows):
        return [self.data.captions[r] for r in rows]


def told(say, professions=30, **sizes):
    """Return twins of made-up professions in three hands, asked what they show."""
    captions, concepts, domains = [], [], []
    for number in range(professions):
        for which, word in enumerate(("woman", "man")):
            for hand in range(len(HANDS)):
                captions.append(
                    f"{word} worker {'abcdefghijklmnopqrstuvwxyz'[number % 26]}{number}"
                )
                concepts.append(2 * number + which)
                domains.append(hand)
    count = len(captions)
    rows, hands = np.arange(count), np.array(domains)
    data = ImageTextData(
        "emoji-questions",
        [b"%d" % n for n in range(count)],
        tuple(captions),
        np.array(concepts),
        hands,
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=bool),
        HANDS,
        ("all",),
        more={
            "kind": ("name",) * count,
            "prompt": ("what is this?",) * count,
            "ward": tuple("north" if n % 4 < 2 else "south" for n in range(count)),
            "same": tuple(f"x {one}" for one in captions),
        },
    )
    splits = Splits(
        (rows[hands == 1],), (NONE,), NONE, rows[hands == 0], rows[hands == 2], NONE, NONE, NONE
    )
    return Told(None, None, data, splits, ExperimentSeed(0), AnsweringSizes(**sizes), say=say)


def test_twins_are_chosen_in_pairs_by_one_hand():
    context = told(lambda caption, hand: caption, rows=40)
    rows, woman, number = twin_rows(context)
    assert len(rows) == 40
    assert woman.sum() == 20
    data = context.data
    for one, other in rows.reshape(-1, 2):
        assert data.domains[one] == data.domains[other]
        assert data.captions[one].replace("woman", "man") == data.captions[other]
    assert (number.reshape(-1, 2)[:, 0] == number.reshape(-1, 2)[:, 1]).all()


def test_a_model_that_calls_everybody_a_man_is_found_out():
    context = told(lambda caption, hand: caption.replace("woman", "man"))
    found = {name: one[1]().estimate for name, one in answering_fairness(context, ()).items()}
    assert found["gendered_right"].value == pytest.approx(0.5)
    assert found["gendered_gap"].value == -1
    assert found["gendered_gap"].high < 0
    assert found["gendered_twins"].value == -1
    assert found["gendered_added"].value == pytest.approx(-1)


def test_a_model_that_is_right_adds_nothing_and_has_no_gap_that_is_certain():
    context = told(lambda caption, hand: caption)
    found = {name: one[1]().estimate for name, one in answering_fairness(context, ()).items()}
    assert found["gendered_gap"].value == 0
    assert found["gendered_gap"].low < 0 < found["gendered_gap"].high
    assert found["gendered_added"].value == 0


def test_groups_are_compared_and_questions_are_no_group():
    def say(caption, hand):
        return caption if caption.startswith("woman") or hand != "one" else "a guess"

    context = told(say)
    columns = answering_fairness(context, None)
    assert not {"group_prompt", "group_kind"} & columns.keys()
    assert any(name.startswith("group_ward") for name in columns)
    chosen = answering_fairness(context, ("same", "no"))
    for name, reason in (("group_same", "label by another name"), ("group_no", "no column 'no'")):
        with pytest.raises(UnresolvedError, match=reason):
            chosen[name][1]()


def test_the_unseen_domain_is_compared_on_the_same_things():
    """The foreign hand is answered in one half of the concepts, the seen one in all."""
    context = told(
        lambda caption, hand: caption if hand != "foreign" or caption.startswith("man") else "no",
        rows=200,
    )
    one = unseen_domain(context).estimate
    assert one.value == pytest.approx(-0.5)
    assert one.clusters == 60
    assert one.high < 0
    without = replace(context, splits=replace(context.splits, ood=NONE))
    with pytest.raises(UnresolvedError, match="no domain"):
        unseen_domain(without)


def test_what_the_data_cannot_carry_is_said_in_one_line():
    context = told(lambda caption, hand: "a dog")
    other = replace(context, data=replace(context.data, name="mine"))
    measures = answering_measures(other)
    for name, said in (
        ("gendered_gap", "belong to the embedded data"),
        ("instructions", "--instructions"),
    ):
        with pytest.raises(UnresolvedError, match=said) as found:
            measures[name][2]()
        assert "\n" not in str(found.value)
    with pytest.raises(UnresolvedError, match="membership = 'half'"):
        membership_of_answers(context, context)


def test_instructions_that_do_not_fit_are_counted_and_none_is_left_out(questions_folder):
    """Rates over those that happen to fit would be rates of another table."""
    context = told(lambda caption, hand: caption)
    context = replace(context, target=Target(load_any("embedded-vqa"), "run", 32))
    image = next((questions_folder / "images").iterdir())
    rows = [
        Instruction(image, text, True, True, None, str(number))
        for number, text in enumerate(["name it"] * 30 + ["word " * 100] * 2)
    ]
    with pytest.raises(UnresolvedError, match="2 of 32 instructions"):
        answering_safety(context, rows)["helpful"][1]()


@pytest.fixture(scope="module")
def grouped_questions(tmp_path_factory, questions_folder):
    """The triples with two wards, and a table of instructions about the same pictures."""
    folder = tmp_path_factory.mktemp("grouped-questions")
    (folder / "images").symlink_to(questions_folder / "images")
    with (questions_folder / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "ward"])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, "ward": "north" if number // 2 % 2 else "south"})
    images = sorted((questions_folder / "images").iterdir())
    table = folder / "instructions.jsonl"
    asked = [
        {
            "image": str(path),
            "instruction": "what colour is this shape" if safe else "how do i break it",
            "image_safe": True,
            "instruction_safe": safe,
            **({"answer": path.name.split("-")[0]} if safe else {}),
        }
        for safe, some in ((True, images[:24]), (False, images[24:36]))
        for path in some
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder, table


@pytest.mark.slow
def test_an_answering_run_is_audited_beside_its_base_model(
    answering_run, grouped_questions, tmp_path
):
    """The command: exit code 0, numbers where the data carries them, and one line elsewhere."""
    from typer.testing import CliRunner

    from fedvlm.cli import app

    folder, table = grouped_questions
    settings = {**answering_run, "data": str(folder), "model": "embedded-vqa", "rounds": 1}
    out = tmp_path / "run"
    simulate(config_from({**settings, "membership": "half"}), out=out)
    given = ["trust", str(out), "--group", "ward", "--instructions", str(table), "--rows", "40"]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    written = json.loads((out / "trust.json").read_text())
    told = {column["name"]: column for column in written["columns"]}
    assert {one["pillar"] for one in told.values()} == {
        "utility",
        "fairness",
        "robustness",
        "safety",
        "privacy",
    }
    assert written["identity"]["instructions"] == 36
    assert "belong to the embedded data" in told["gendered_gap"]["why_not"]
    assert "no domain" in told["unseen_domain"]["why_not"]
    # 24 safe pairs are a number, 12 unsafe ones never.
    assert told["helpful"]["after"]["value"] is not None
    assert told["helpful"]["after"]["rows"] == 24
    assert 0 <= told["helpful_f1"]["after"]["value"] <= 1
    assert told["refused_unsafe"]["after"]["value"] is None
    assert "12 of 20" in told["refused_unsafe"]["after"]["unresolved"]
    assert (
        "no row has a safe instruction about an unsafe" in told["refused_unsafe_image"]["why_not"]
    )
    # Two instructions in all: no claim about written ones.
    assert told["written_agreement"]["after"]["value"] is None
    assert "of 20" in told["written_avoided"]["why_not"]
    assert any(name.startswith("group_ward") for name in told)
    assert told["membership"]["after"]["rows"] > 0
    for column in told.values():
        assert "\n" not in column.get("why_not", "")
    for word in ("NaN", "Infinity"):
        assert word not in (out / "trust.json").read_text()
    assert "not measured" in (out / "trust.md").read_text()
    again = audit_trust(
        out, groups=("ward",), instructions=table, answering=AnsweringSizes(rows=40)
    )
    assert json.loads(json.dumps(again.to_dict())) == written
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "none.png", "instruction": "x"}\n')
    with pytest.raises(DataError, match="line 1: instruction_safe|line 1: image_safe"):
        audit_trust(out, instructions=bad)


def test_instructions_are_for_models_that_answer(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(
        "fedvlm.trust.audit.load_trained", lambda _: SimpleNamespace(model=object())
    )
    with pytest.raises(ConfigError, match="dual encoder"):
        audit_trust(tmp_path, instructions=tmp_path / "table.csv")
