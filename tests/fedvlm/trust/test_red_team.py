"""Targets for garak and PyRIT: the real packages where they are, else calls as they make them.

The stand-ins hold the signatures of garak 0.17.1 and PyRIT 1.1.0 that a target of one's own meets.
"""

import asyncio
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from fedvlm.errors import ConfigError
from fedvlm.models import load_any
from fedvlm.trust import red_team
from fedvlm.trust.red_team import garak_answers, garak_generator, pyrit_target
from fedvlm.trust.target import Target, load_target


@pytest.fixture(scope="module")
def target():
    return Target(load_any("embedded-vqa"), "fedvlm:test", most_tokens=16)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def loaded(target, monkeypatch):
    monkeypatch.setattr(red_team, "_loaded", lambda run, most_tokens: target)


def test_a_target_takes_an_image_a_path_or_none(target, picture):
    said = target(picture, "what colour is it?")
    assert isinstance(said, str)
    assert target(Image.open(picture), "what colour is it?") == said
    assert isinstance(target(None, "what is this?"), str)
    many = target.many([picture, target.blank], ["what colour is it?", "what is this?"])
    assert many == [said, target(None, "what is this?")]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "give a question"), ("<image> what?", "holds <image>"), ("what " * 200, "don't fit")],
)
def test_a_target_refuses_what_the_model_cannot_be_asked(target, prompt, said):
    with pytest.raises(ConfigError, match=said):
        target(None, prompt)


def test_a_dual_encoder_is_no_target(monkeypatch):
    monkeypatch.setattr(
        "fedvlm.trust.target.load_trained", lambda _: SimpleNamespace(model=load_any("embedded"))
    )
    with pytest.raises(ConfigError, match="dual encoder"):
        load_target("runs/any")


class Single:
    """Calls a function as garak's `generators.function.Single` does."""

    def __init__(self, name, **kwargs):
        self.kwargs = kwargs
        module, function = name.split("#")
        self.generator = getattr(importlib.import_module(module), function)
        if "name" in inspect.signature(self.generator).parameters:
            raise ValueError("name is reserved")

    def call(self, prompt):
        answers = self.generator(prompt, **self.kwargs)
        return list(answers) if answers else [None]


@pytest.mark.usefixtures("loaded")
def test_garaks_function_generator_gets_one_text_or_none(target, picture):
    single = Single("fedvlm.trust.red_team#garak_answers", run="runs/any", image=str(picture))
    assert single.call("what colour is it?") == [target(picture, "what colour is it?")]
    assert single.call("[INST] <image>\nwhat colour is it?") == [
        target(picture, "[INST] \nwhat colour is it?")
    ]
    for hopeless in ("", "<image>", "what " * 500):
        assert single.call(hopeless) == [None]
    blank = Single("fedvlm.trust.red_team#garak_answers", run="runs/any").call("what is this?")
    assert blank == [target(None, "what is this?")]


@pytest.mark.usefixtures("loaded")
def test_the_real_function_generator_where_it_is():
    function = pytest.importorskip("garak.generators.function")
    attempt = pytest.importorskip("garak.attempt")
    single = function.Single(name="fedvlm.trust.red_team#garak_answers", run="runs/any")
    asked = attempt.Conversation([attempt.Turn("user", attempt.Message("what is this?"))])
    (said,) = single.generate(asked)
    assert said.text == garak_answers("what is this?", run="runs/any")[0]


def test_the_real_prompt_target_where_it_is(target, picture):
    setup = pytest.importorskip("pyrit.setup")
    models = pytest.importorskip("pyrit.models")

    async def send():
        await setup.initialize_pyrit_async(memory_db_type=setup.IN_MEMORY)
        kinds = (("what colour is it?", "text"), (str(picture), "image_path"))
        pieces = [
            models.MessagePiece(
                role="user",
                original_value=value,
                converted_value=value,
                original_value_data_type=kind,
                converted_value_data_type=kind,
                conversation_id="one",
            )
            for value, kind in kinds
        ]
        message = models.Message(message_pieces=pieces)
        return await pyrit_target(target).send_prompt_async(message=message)

    (reply,) = asyncio.run(send())
    assert reply.message_pieces[0].converted_value == target(picture, "what colour is it?")


@dataclass
class Message:
    text: str | None = None
    data_path: str | None = None


class Generator:
    modality: dict = {"in": {"text"}, "out": {"text"}}  # noqa: RUF012

    def __init__(self, name=""):
        self.name = name

    def generate(self, prompt, generations_this_call=1):
        out = [self._call_model(prompt, 1) for _ in range(generations_this_call)]
        assert all(isinstance(one, list) and len(one) == 1 for one in out)
        assert all(isinstance(one[0], Message) or one[0] is None for one in out)
        return [one[0] for one in out]


@pytest.fixture
def garak(monkeypatch):
    base, attempt = ModuleType("garak.generators.base"), ModuleType("garak.attempt")
    base.Generator, attempt.Message = Generator, Message
    for module in (ModuleType("garak"), ModuleType("garak.generators"), base, attempt):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("garak")
def test_a_visual_probe_of_garak_gets_its_image_through(target, picture):
    generator = garak_generator(target)
    assert generator.modality["in"] == {"text", "image"}
    assert not generator.parallel_capable

    def ask(text, path=None):
        message = Message(text, None if path is None else str(path))
        return generator.generate(SimpleNamespace(last_message=lambda: message), 2)

    said = ask("<image>\nwhat colour is it?", picture)
    assert [one.text for one in said] == [target(picture, "what colour is it?")] * 2
    assert ask("what " * 500) == [None, None]


@dataclass(frozen=True)
class TargetCapabilities:
    supports_multi_message_pieces: bool = False
    input_modalities: frozenset = frozenset()


@dataclass(frozen=True)
class TargetConfiguration:
    capabilities: TargetCapabilities


@dataclass
class Piece:
    converted_value: str
    converted_value_data_type: str = "text"
    response_error: str = "none"


@dataclass
class Conversation:
    message_pieces: list = field(default_factory=list)


class PromptTarget:
    _DEFAULT_CONFIGURATION = TargetConfiguration(TargetCapabilities())

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for one in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            assert one.kind is inspect.Parameter.KEYWORD_ONLY

    def __init__(self, *, model_name=""):
        self.model_name = model_name

    async def _send_prompt_to_target_async(self, *, normalized_conversation):
        raise AssertionError("a target has its own")

    async def send_prompt_async(self, *, message):
        takes = self._DEFAULT_CONFIGURATION.capabilities
        types = {one for combination in takes.input_modalities for one in combination}
        assert takes.supports_multi_message_pieces or len(message.message_pieces) == 1
        assert {piece.converted_value_data_type for piece in message.message_pieces} <= types
        return await self._send_prompt_to_target_async(normalized_conversation=[message])


def construct_response_from_request(request, response_text_pieces, error="none"):
    return Conversation([Piece(one, "text", error) for one in response_text_pieces])


@pytest.fixture
def pyrit(monkeypatch):
    targets, models = ModuleType("pyrit.prompt_target"), ModuleType("pyrit.models")
    targets.PromptTarget = PromptTarget
    targets.TargetCapabilities = TargetCapabilities
    targets.TargetConfiguration = TargetConfiguration
    models.construct_response_from_request = construct_response_from_request
    for module in (ModuleType("pyrit"), targets, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return targets


@pytest.mark.usefixtures("pyrit")
def test_pyrit_sends_a_text_and_an_image_and_gets_an_answer(target, picture):
    own = pyrit_target(target)

    def send(*pieces):
        return asyncio.run(own.send_prompt_async(message=Conversation(list(pieces))))

    image = Piece(str(picture), "image_path")
    (reply,) = send(Piece("what colour is it?"), image)
    assert [p.converted_value for p in reply.message_pieces] == [
        target(picture, "what colour is it?")
    ]
    (reply,) = send(Piece("what is this?"))
    assert reply.message_pieces[0].converted_value == target(None, "what is this?")
    with pytest.raises(ValueError, match="one text and at most one image; got 1 texts and 2"):
        send(Piece("which?"), image, image)
    with pytest.raises(ConfigError, match="don't fit"):
        send(Piece("what " * 500))


def test_an_old_pyrit_is_named(target, pyrit):
    del pyrit.TargetConfiguration
    with pytest.raises(ConfigError, match=r"pyrit>=1\.0"):
        pyrit_target(target)


@pytest.mark.parametrize(("make", "name"), [(garak_generator, "garak"), (pyrit_target, "pyrit")])
def test_what_is_not_installed_is_named_with_its_fix(target, make, name, monkeypatch):
    for module in [one for one in sys.modules if one.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        make(target)
