"""The tutorial's lines run as printed, and end as it says."""

import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[3] / "docs" / "audit.md"


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(code.group(1), {})  # our own documentation
    area, rate, verdict = capsys.readouterr().out.strip().splitlines()
    assert area.startswith("0.8")
    assert "resolved=True" in rate
    assert verdict.endswith("True")
