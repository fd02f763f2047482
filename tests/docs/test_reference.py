"""The whole public API stands in the reference, and can be seen from Python."""

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PACKAGES = (
    "fedvlm",
    "fedvlm.adapters",
    "fedvlm.config",
    "fedvlm.data",
    "fedvlm.federation",
    "fedvlm.heads",
    "fedvlm.inference",
    "fedvlm.leakage",
    "fedvlm.mitigation",
    "fedvlm.models",
    "fedvlm.privacy",
    "fedvlm.trained",
    "fedvlm.training",
    "fedvlm.trust",
    "secure",
    "secure.aggregation",
    "secure.flower",
    "secure.he",
    "secure.smpc",
)
PAGES = {page: page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")}


def whole(package: str) -> str:
    """Return the part of a page that documents a package; "" where none does."""
    block = re.compile(rf"^\.\. automodule:: {re.escape(package)}\n((?:   .*\n)*)", re.MULTILINE)
    return "".join(found[0] for text in PAGES.values() if (found := block.search(text)))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_stands_in_the_reference(package):
    """Autodoc takes each name of `__all__` that has a docstring; the others are written out."""
    options = whole(package)
    assert "   :members:\n" in options, "no page documents it, or only a part of it"
    excluded = re.search(r":exclude-members: (.*)", options)
    left_out = set(excluded[1].split(", ")) if excluded else set()
    written = "\n".join(PAGES.values())
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        documented = (isinstance(value, type) or callable(value)) and value.__doc__
        if documented and name not in left_out:
            continue
        directive = rf"^\.\. (?:autoclass|py:data):: {re.escape(package)}\.{name}$"
        assert re.search(directive, written, re.MULTILINE), name


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_lists_what_is_public(package):
    """Lazy names too: a shell's completion asks `dir`."""
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    assert sorted(module.__all__) == sorted(set(module.__all__))


def test_lazy_names_are_listed_before_they_are_imported():
    code = (
        "import sys, fedvlm, fedvlm.federation as f;"
        "assert {'simulate', 'Result'} <= set(dir(fedvlm)) & set(dir(f));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["fedvlm", "secure"])
def test_packages_say_that_they_are_typed(package):
    folder = Path(str(importlib.import_module(package).__file__)).parent
    assert (folder / "py.typed").is_file()


def inventory(path: Path) -> set[str]:
    """Return the names of a built site's inventory."""
    data = path.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(data).decode().splitlines()}


@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "docs",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    known = inventory(tmp_path / "objects.inv")
    pages = " ".join(p.read_text("utf-8") for p in (tmp_path / "reference").glob("*.html"))
    for package in PACKAGES:
        for name in importlib.import_module(package).__all__:
            shown = f"{package}.{name}" in known or f'descname"><span class="pre">{name}<' in pages
            assert shown, f"{package}.{name}"
