"""Triples about drawn shapes, and tiny generative models in folders."""

import pytest

from tests.fedvlm.conftest import COLOURS, SHAPES, STYLES, draw
from tests.fedvlm.generative.families import save_family, save_questions


@pytest.fixture(scope="session")
def questions_folder(tmp_path_factory):
    """A folder of 108 triples about 54 drawn shapes."""
    folder = tmp_path_factory.mktemp("questions")
    drawn = [
        (f"{colour}-{shape}-{style}.png", colour, shape, draw(colour, shape, style))
        for colour in COLOURS
        for shape in SHAPES
        for style in STYLES
    ]
    save_questions(folder, drawn)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """Return the folder of a family's tiny instance, made once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_family(name, made[name])
        return made[name]

    return folder


@pytest.fixture
def answering_run(questions_folder, tmp_path, monkeypatch):
    """Settings of a small federation over the triples."""
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    return {
        "data": str(questions_folder),
        "clients": 3,
        "partition": "iid",
        "rank": 2,
        "lora_alpha": 4,
        "rounds": 2,
        "local_epochs": 1,
        "batch_size": 16,
        "references": False,
        "workers": 1,
    }
