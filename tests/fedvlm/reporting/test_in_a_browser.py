"""Pages in a real browser: no error, no sideways scroll, no serious fault of accessibility.

Debian's chromium is taken where it is installed, and axe-core from `FEDVLM_AXE` (its axe.min.js)
or from npm's global folder; without the browser these tests are skipped, and say so.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fedvlm.config import config_from
from fedvlm.reporting.live import watched_page
from fedvlm.reporting.pages import report_of
from tests.fedvlm.reporting.browser import Browser, find_browser
from tests.fedvlm.reporting.samples import audit_of, comparison, folder_of, result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium; apt-get install chromium"),
]
WIDTHS = (1280, 390)
_HIGHEST = {1280: 8_000, 390: 14_000}
"""Pixels; U6's page was 80,374 high. Folds are closed."""


def find_axe() -> Path | None:
    """Return axe-core's script; None where it isn't installed."""
    told = os.environ.get("FEDVLM_AXE")
    if told:
        return Path(told)
    npm = shutil.which("npm")
    if npm is None:
        return None
    done = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False)
    found = Path(done.stdout.strip()) / "axe-core" / "axe.min.js"
    return found if found.exists() else None


def pages(folder: Path) -> dict[str, Path]:
    """Write a page of each kind; returns their files."""
    out = {}
    for name, settings, seen in (
        ("plain", {}, "V1"),
        ("secagg", {"protection.protect": "secagg"}, "V2"),
        ("private", {"privacy.dp": "example"}, "V1"),
    ):
        found = result(settings)
        out[name] = report_of(folder_of(folder / name, found, audit_of(found, seen)))
    out["bare"] = report_of(folder_of(folder / "bare", result(), trust=False))
    (folder / "comparison").mkdir()
    comparison().save(folder / "comparison")
    out["comparison"] = report_of(folder / "comparison")
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser():
    with Browser(str(find_browser())) as found:
        yield found


SIZE = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "secagg", "private", "bare", "comparison"])
def test_a_page_fits_and_runs_without_error(browser, written, name, width, dark, tmp_path):
    browser.open(written[name].as_uri(), width, dark)
    wide, high = browser.run(SIZE)
    assert wide == width
    assert high < _HIGHEST[width]
    browser.run(OPEN)
    wide, _ = browser.run(SIZE)
    assert wide == width
    small = (
        "Math.min(...Array.from(document.querySelectorAll('svg text')).filter((one) => "
        "one.getBoundingClientRect().height > 0).map((one) => parseFloat(getComputedStyle(one)."
        "fontSize) * one.getScreenCTM().a))"
    )
    assert browser.run(small) >= 10  # U12: legible on a phone
    assert browser.problems == []


def test_light_and_dark_are_two_pages(browser, written):
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('svg .main')).stroke"
    seen = []
    for dark in (False, True):
        browser.open(written["plain"].as_uri(), 1280, dark)
        seen.append((browser.run(ground), browser.run(line)))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.skipif(find_axe() is None, reason="no axe-core; npm install -g axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "private", "comparison"])
def test_no_serious_fault_of_accessibility(browser, written, name, width, dark):
    browser.open(written[name].as_uri(), width, dark)
    browser.run(OPEN)
    browser.run(Path(str(find_axe())).read_text())
    found = browser.run(
        "axe.run().then((told) => told.passes.length < 15 ? ['nothing was checked'] : "
        "told.violations.filter((one) => ['serious', 'critical'].includes(one.impact))"
        ".map((one) => one.id + ': ' + one.nodes[0].html))"
    )
    assert found == []


def test_a_table_is_sorted_by_keyboard(browser, written):
    browser.open(written["comparison"].as_uri())
    head = "document.querySelectorAll('#table th button')[1]"
    first = "document.querySelector('#table tbody tr th').textContent"
    names = f"(() => {{ {head}.focus(); return [document.activeElement.textContent, {first}]; }})()"
    assert browser.run(names) == ["accuracy", "none"]
    press = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    seen = []
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, **press)
        seen.append(
            (browser.run(first), browser.run(f"{head}.closest('th').getAttribute('aria-sort')"))
        )
    assert [told for _, told in seen] == ["descending", "ascending"]
    assert seen[0][0] == "none"
    assert "ε\u00a0=\u00a01" in seen[1][0]
    last = "document.querySelector('#table tbody tr:last-child').textContent"
    assert "failed" in browser.run(last)  # what has no number stays behind


def test_a_value_is_said_where_it_is_pointed_at(browser, written):
    browser.open(written["plain"].as_uri())
    place = browser.run(
        "(() => { const box = document.querySelectorAll('.wide .mark')[6].getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    told = browser.run("document.getElementById('tip').textContent").replace("\u202f", " ")
    assert told == "federated, round 6: 62.0 % [58.0 %, 66.0 %]"


def test_what_is_hostile_stays_text(browser, tmp_path):
    from tests.fedvlm.reporting.test_run_page import HOSTILE

    found = result()
    found.data["name"] = found.protection["name"] = HOSTILE
    found.versions[HOSTILE] = HOSTILE
    page = report_of(folder_of(tmp_path, found))
    browser.open(page.as_uri())
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.images.length") == 0
    assert browser.problems == []


def test_the_live_page_takes_in_each_round_and_the_end(browser):
    rounds = result().rounds
    said: list[str] = []
    status = "document.querySelector('.status').textContent"
    fold = "document.querySelector('#configuration details')"
    dots = "document.querySelectorAll('.wide .mark').length"

    def until(what: str, told: object) -> None:
        end = time.monotonic() + 20
        while browser.run(what) != told:
            assert time.monotonic() < end, (what, browser.run(what))
            time.sleep(0.1)

    with watched_page(config_from({}), 0, said.append) as page:
        browser.open(said[0].removeprefix("live at "), 390)
        until(status, "Preparing: loading data and model.")
        for count, entry in enumerate(rounds[:3], 1):
            page.round(entry)
            until(f"{dots} >= {count}", True)
        browser.run(f"{fold}.open = true")
        page.event({"event": "round", "entry": rounds[3], "time": 1.0})
        page.round(rounds[3])
        until(status, "3 of 6 rounds are done.")
        assert browser.run(f"{fold}.open")  # what was opened stays open
        assert browser.run(SIZE)[0] == 390
        page.end(result())
    until(status, "The run has ended.")
    assert browser.problems == []
