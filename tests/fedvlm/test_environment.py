"""What else is installed: a torchvision that doesn't fit, and another project's `secure`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import secure

ROOT = Path(secure.__file__).parent.parent
BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")\n'


def _run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(each) for each in (*paths, ROOT))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
    )


def _broken_torchvision(folder: Path) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("import torchvision._half\n" + BROKEN)
    (package / "_half.py").write_text("")
    return folder


def test_u1_a_torchvision_that_cannot_be_imported_breaks_nothing(tmp_path):
    done = _run(
        "import fedvlm, sys\n"
        "from fedvlm.models import load_model\n"
        "from fedvlm.adapters import attach, AdapterSpec\n"
        "from fedvlm.seeds import ExperimentSeed\n"
        "spec = AdapterSpec('lora', 4, 8, '.*q_proj')\n"
        "view = attach(load_model().vlm, spec, ExperimentSeed(0))\n"
        "assert sys.modules['torchvision'] is None\n"
        "assert not [name for name in sys.modules if name.startswith('torchvision.')]\n"
        "print('attached')",
        _broken_torchvision(tmp_path),
    )
    assert done.stdout.strip() == "attached", done.stderr


def test_u1_a_torchvision_that_works_stays(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    done = _run(
        "import sys\nfrom fedvlm._torchvision import hide_if_broken\nhide_if_broken()\n"
        "import torchvision\nprint(torchvision.__name__)",
        tmp_path,
    )
    assert done.stdout.strip() == "torchvision", done.stderr


DOCTOR = "import sys; sys.argv = ['fedvlm', 'doctor']; from fedvlm.cli import main; main()"


def test_u1_doctor_names_what_is_left_out_and_fails_for_what_is_needed(tmp_path):
    done = _run(DOCTOR, _broken_torchvision(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torchvision: doesn't fit this torch; left out of use" in done.stdout
    package = tmp_path / "peft"
    package.mkdir()
    (package / "__init__.py").write_text('raise ImportError("torn")\n')
    done = _run(DOCTOR, tmp_path)
    assert done.returncode == 1
    assert "BROKEN  peft" in done.stdout
    assert "pip install --force-reinstall peft" in done.stdout


@pytest.mark.parametrize("init", ["from secure.theirs import X\n", None])
def test_u7_another_projects_secure_is_noticed(tmp_path, init):
    shutil.copytree(ROOT / "secure", tmp_path / "secure")
    mine = tmp_path / "secure" / "__init__.py"
    mine.unlink()
    if init:  # installed over ours: its files beside ours
        mine.write_text(init)
        (tmp_path / "secure" / "theirs.py").write_text("X = 1\n")
    # No other folder with our package may be on the path: a namespace package would find it.
    shutil.copytree(ROOT / "fedvlm", tmp_path / "fedvlm")
    hide = (
        "import sys, pathlib\n"
        f"sys.path = [p for p in sys.path if p == {str(tmp_path)!r}"
        " or p and not (pathlib.Path(p) / 'secure').is_dir()]\n"
    )
    done = _run(hide + "from secure.aggregation import Client", tmp_path)
    assert done.returncode == 1
    assert "ImportError: the package `secure` " in done.stderr
    assert "pip uninstall -y secure" in done.stderr
    done = _run(hide + DOCTOR, tmp_path)
    assert done.returncode == 1
    assert "BROKEN  the package `secure`" in done.stdout, done.stdout + done.stderr
