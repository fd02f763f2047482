"""The page "private classification in one round" runs, and keeps what it says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "private-classification.md"


@pytest.mark.slow
def test_the_page_runs_and_noise_costs_little(tmp_path, monkeypatch):
    """Over one split of 90 test images noise may cost more than in the mean: six points of 100."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    plain = names["plain"].rounds[-1]["test_one_of_100"]
    private = names["result"].rounds[-1]["test_one_of_100"]
    assert plain > 0.85
    assert private > plain - 0.06
    assert names["result"].privacy["unit"] == "example"
    assert names["result"].privacy["epsilon"] <= 3.0
