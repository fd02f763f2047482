"""Is a command of the documentation one that exists? Looked up, and not run."""

import argparse
import contextlib
import io
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from unittest import mock

from tests.docs.pages import ROOT

# Commands whose words go on to another program's parser: argparse's, and typer's.
PARSERS = {
    "dealer": "secure.smpc.dealer",
    "he-serve": "secure.he.serve",
    "he-query": "secure.he.query",
}
APPS = {"privacy": "fedvlm.privacy.cli", "infer": "fedvlm.inference.cli"}
# Words that stand for what the reader puts there.
OPEN = re.compile(r"…|^\.\.\.$|^[A-Z][A-Z_.]*$|\|")


@cache
def targets() -> set[str]:
    """Return the Makefile's targets."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def problem(words: list[str]) -> str:
    """Say what is wrong with a command; "" where nothing is, or where it isn't one of ours."""
    while words and re.fullmatch(r"\w+=.*", words[0]):  # variables of this command alone
        words = words[1:]
    if not words:
        return ""
    name, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if name == "make":
        lacking = [each for each in rest if "=" not in each and each not in targets()]
        return f"no target {lacking}" if lacking else ""
    if name in ("python", "python3") and rest[:1] == ["-m"]:
        return of_module(rest[1], rest[2:])
    return of_fedvlm(rest) if name == "fedvlm" else ""


def of_module(module: str, rest: list[str]) -> str:
    if module.split(".")[0] not in ("fedvlm", "secure", "simulations"):
        return ""
    if module == "simulations.benchmarks":
        lacking = [
            each
            for each in rest[:1]
            if each != "all" and not OPEN.search(each) and not find_spec(f"{module}.{each}")
        ]
        return f"no benchmark {lacking}" if lacking else ""
    try:
        return "" if find_spec(module) else f"no module {module}"
    except ModuleNotFoundError:
        return f"no module {module}"


def of_fedvlm(words: list[str]) -> str:
    """Walk through groups to the command, and parse its options and settings."""
    import typer

    from fedvlm.cli import app

    command, group = typer.main.get_command(app), ""
    while hasattr(command, "commands"):
        while words and words[0].startswith("-"):
            words = words[1:]
        if not words:
            return ""
        name = words[0]
        if name in PARSERS:
            return of_parser(PARSERS[name], words[1:])
        if name not in command.commands:  # pyright: ignore
            return "" if OPEN.search(name) else f"no command {name!r}"
        command, words = command.commands[name], words[1:]  # pyright: ignore
        if command.context_settings.get("ignore_unknown_options"):
            words = words if name in APPS else [name, *words]
            command = typer.main.get_command(import_module(APPS[group or name]).app)
        group = name
    known = {each for one in command.params for each in (*one.opts, *one.secondary_opts)}
    given = {each.split("=")[0] for each in words if each.startswith("--")}
    if given - known - {"--help"}:
        return f"no option {sorted(given - known)}"
    if not words or any(OPEN.search(each) for each in words):
        return ""
    try:
        context = command.make_context(command.name, list(words))
    except Exception as error:
        text = str(getattr(error, "format_message", lambda: error)())
        # Which files are there is not the question, and a command in a sentence may be cut short.
        return "" if "does not exist" in text or text.startswith("Missing") else text
    return of_settings(context.params.get("settings") or [])


class _Stopped(Exception):  # noqa: N818
    """Where a program would begin to read its arguments."""


def of_parser(module: str, words: list[str]) -> str:
    """Let the parser of a program read the words, and nothing else of it run."""
    found: list[argparse.ArgumentParser] = []

    def stop(self, *_):
        found.append(self)
        raise _Stopped

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(_Stopped):
        import_module(module).main([])
    parsers = [found[0]]
    for action in found[0]._actions:
        if isinstance(action.choices, dict):
            parsers += action.choices.values()
    known = {name for parser in parsers for name in parser._option_string_actions}
    given = {each.split("=")[0] for each in words if each.startswith("--")}
    if given - known:
        return f"no option {sorted(given - known)}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            found[0].parse_args(words)
    except SystemExit as end:
        text = said.getvalue().strip().splitlines()[-1:] or [""]
        return "" if not end.code or "are required" in text[0] else text[0]
    return ""


def of_settings(pairs: list[str]) -> str:
    from fedvlm.config import config_from
    from fedvlm.errors import FedVLMError

    try:
        config_from(dict(pair.split("=", 1) for pair in pairs))
    except (FedVLMError, ValueError) as error:
        return str(error)
    return ""
