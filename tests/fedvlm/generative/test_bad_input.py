"""What can't work is refused in one line, before the first round."""

import csv
import json
import shutil

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.data import load_folder
from fedvlm.data.conversation import answers_of, conversations_of
from fedvlm.errors import ConfigError, DataError
from fedvlm.federation import simulate
from fedvlm.models import load_any
from fedvlm.models.generative.loading import load_generative
from fedvlm.training.answers import encode_answers


@pytest.fixture
def copy(family_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(family_folder("llava"), folder)
    return folder


def refused(folder) -> str:
    with pytest.raises(ConfigError) as caught:
        load_generative(str(folder))
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_a_folder_without_processor(copy):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    assert "has no processor" in refused(copy)


def test_a_folder_without_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(copy)


def test_torn_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "torn" in refused(copy)


def test_missing_weights_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    gone = next(name for name in state if "multi_modal_projector" in name)
    del state[gone]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the model's weights" in refused(copy)


def test_weights_that_are_not_finite(copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    name = next(name for name in state if "q_proj" in name)
    state[name][0, 0] = float("nan")
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert "not finite" in refused(copy)


def test_a_vocabulary_larger_than_the_embedding(copy):
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    special = {**content["added_tokens"][-1], "id": 5000, "content": "<one more>"}
    content["added_tokens"].append(special)
    content["model"]["vocab"] |= {f"extra{n}": n for n in range(320, 5000)}
    path.write_text(json.dumps(content))
    assert "tokens and the model embeds" in refused(copy)


def test_image_tokens_that_do_not_fit_the_images(copy):
    """The processor counts patches of 7 pixels where the model has some of 14."""
    path = copy / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 7}))
    assert "can't take what its processor makes" in refused(copy)


def test_a_chat_template_without_an_image(copy):
    path = next(
        p for p in (copy / "chat_template.jinja", copy / "tokenizer_config.json") if p.exists()
    )
    path.write_text(path.read_text().replace("<image>", ""))
    text = refused(copy)
    assert "no place for the image" in text or "can't take an image" in text


def test_an_unknown_family_names_those_that_are_known(copy):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="bert"):
        load_any(str(copy))


def table(folder, rows):
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "answer"])
        writer.writerows(rows)


@pytest.fixture
def own(questions_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(questions_folder, folder)
    with (folder / "captions.csv").open() as file:
        return folder, [list(row) for row in csv.reader(file)][1:]


def test_answers_longer_than_the_context_say_which_and_how_many(own, family_folder, answering_run):
    folder, rows = own
    rows[3][2] = rows[8][2] = "a red circle " * 200
    table(folder, rows)
    config = config_from(
        {**answering_run, "data": str(folder), "model": str(family_folder("llava"))}
    )
    with pytest.raises(ConfigError, match=r"2 triples .* context of 256 tokens .*row 4 .*, 9 "):
        simulate(config)


def test_a_triple_that_only_its_image_makes_too_long(own, family_folder):
    """Its text fits; with the image's tokens it doesn't, and the batch says so."""
    folder, rows = own
    model = load_generative(str(family_folder("llava")))
    encoded = encode_answers(load_folder(folder), model, lambda *_: None)
    prompt = model.processor.prompt_length(encoded.conversations[0])
    fits = 256 - prompt - 1
    rows[0][2] = "z" * (fits - 1)  # a token a letter, and the end
    table(folder, rows)
    encoded = encode_answers(load_folder(folder), model, lambda *_: None)
    assert len(encoded.answer_ids[0]) + prompt <= 256
    with pytest.raises(ConfigError, match=r"1 triple .*context of 256 tokens.*row 1"):
        encoded.batch(np.array([0]))


def test_a_text_that_holds_the_image_s_place(own, family_folder):
    folder, rows = own
    rows[5][1] = "<image>\nwhat is this?"
    rows[7][2] = "an <image>"
    table(folder, rows)
    model = load_generative(str(family_folder("llava")))
    with pytest.raises(ConfigError, match=r"2 triples hold <image>.*row 6, 8"):
        encode_answers(load_folder(folder), model, lambda *_: None)


def test_adapters_of_dual_encoders_are_refused(family_folder, answering_run):
    for kind in ("prompt", "feature"):
        config = config_from(
            {**answering_run, "model": str(family_folder("llava")), "adapter": kind}
        )
        with pytest.raises(ConfigError, match="lora or ffa-lora"):
            simulate(config)


def chats(folder, rows):
    (folder / "captions.csv").unlink(missing_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "captions.jsonl").write_text(text + "\n")


def test_chats_are_read_up_to_their_last_answer(own):
    folder, rows = own
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colour?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "shape?"},
        {"role": "assistant", "content": [{"type": "text", "text": "circle"}]},
    ]
    plain = {"image": rows[1][0], "prompt": "what?", "answer": "bar"}
    chats(folder, [{"image": rows[0][0], "messages": messages}, plain])
    data = load_folder(folder)
    assert list(answers_of(data)) == ["circle", "bar"]
    first, second = conversations_of(data)
    assert [(turn.role, turn.text) for turn in first] == [
        ("system", "be short"),
        ("user", "colour?"),
        ("assistant", "red"),
        ("user", "shape?"),
    ]
    assert [(turn.role, turn.text) for turn in second] == [("user", "what?")]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "user", "content": "a?"}], "a question and an answer"),
        ([{"role": "user", "content": "a?"}, {"role": "user", "content": "b"}], "must end with"),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            "no question",
        ),
        ([{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}], "role"),
        (
            [
                {"role": "user", "content": [{"type": "video"}]},
                {"role": "assistant", "content": "b"},
            ],
            "video",
        ),
        ("not json", "not JSON"),
        (5, "list"),
    ],
)
def test_chats_that_teach_nothing_are_refused_by_row(own, messages, why):
    folder, rows = own
    good = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    chats(
        folder,
        [
            {"image": rows[0][0], "messages": good},
            {"image": rows[1][0], "messages": messages},
        ],
    )
    with pytest.raises(DataError, match=f"row 2: .*{why}") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_chat_for_a_model_without_a_template(own, family_folder):
    folder, rows = own
    two = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "d"},
    ]
    chats(folder, [{"image": rows[0][0], "messages": two}])
    model = load_generative(str(family_folder("paligemma")))
    with pytest.raises(ConfigError, match="no chat template"):
        encode_answers(load_folder(folder), model, lambda *_: None)
