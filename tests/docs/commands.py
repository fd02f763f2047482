"""Is a command of the documentation one that exists? Looked up, and not run."""

import argparse
import contextlib
import inspect
import io
import re
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import typer

from tests.docs.pages import ROOT

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


class _Stopped(Exception):  # noqa: N818
    """Where a program would begin to read its arguments."""


def of_fedvlm(words: list[str]) -> str:
    from fedvlm.cli import app

    return of_group(typer.main.get_command(app), words)


def of_group(command: Any, words: list[str]) -> str:
    """Walk through groups to the command, and parse its options and settings."""
    while hasattr(command, "commands"):
        while words and words[0].startswith("-"):
            words = words[1:]
        if not words:
            return ""
        if words[0] not in command.commands:
            return "" if OPEN.search(words[0]) else f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
        if command.context_settings.get("ignore_unknown_options"):
            return handed_on(command, words)
    return of_options(command, words)


def handed_on(command: Any, words: list[str]) -> str:
    """Let a command that hands its words on do so, and stop where they would be read."""
    found: list[Any] = []

    def stop(self, arguments, *_, **__):
        found.extend((self, arguments))
        raise _Stopped

    reading = mock.patch.object(argparse.ArgumentParser, "parse_args", stop)
    calling = mock.patch.object(typer.Typer, "__call__", stop)
    with reading, calling, contextlib.suppress(_Stopped):
        inspect.unwrap(command.callback)(SimpleNamespace(args=list(words)))
    parser, rest = found
    if isinstance(parser, typer.Typer):
        return of_group(typer.main.get_command(parser), list(rest))
    return of_parser(parser, list(rest))


def of_options(command: Any, words: list[str]) -> str:
    known = {each for one in command.params for each in (*one.opts, *one.secondary_opts)}
    given = {each.split("=")[0] for each in words if each.startswith("--")}
    if given - known - {"--help"}:
        return f"no option {sorted(given - known)}"
    if not words or any(OPEN.search(each) for each in words):
        return ""
    try:
        context = command.make_context(command.name, list(words))
    except Exception as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        # Which files are there is not the question, and a command in a sentence may be cut short.
        return "" if "does not exist" in text or text.startswith("Missing") else text
    return of_settings(context.params.get("settings") or [])


def of_parser(parser: argparse.ArgumentParser, words: list[str]) -> str:
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parsers += action.choices.values()
    known = {name for one in parsers for name in one._option_string_actions}
    given = {each.split("=")[0] for each in words if each.startswith("--")}
    if given - known:
        return f"no option {sorted(given - known)}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as end:
        text = (said.getvalue().strip().splitlines() or [""])[-1]
        return "" if not end.code or "are required" in text else text
    return ""


def of_settings(pairs: list[str]) -> str:
    from fedvlm.config import config_from
    from fedvlm.errors import FedVLMError

    try:
        config_from(dict(pair.split("=", 1) for pair in pairs))
    except (FedVLMError, ValueError) as error:
        return str(error)
    return ""
