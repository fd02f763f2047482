"""`fedvlm report DIR`: the page of whatever a folder holds."""

from pathlib import Path

from fedvlm.federation.result import FILE as RESULT
from fedvlm.federation.result import Result
from fedvlm.reporting.comparison import FILE as COMPARISON
from fedvlm.reporting.comparison import Comparison
from fedvlm.reporting.comparison_page import write_comparison
from fedvlm.reporting.run_page import write_report


def report_of(folder: Path) -> Path:
    """Write `report.html` for a folder's comparison, or for its run; returns the page's path.

    Raises:
        ConfigError: The folder holds neither, or what it holds can't be read.
    """
    if (folder / COMPARISON).exists() and not (folder / RESULT).exists():
        return write_comparison(Comparison.load(folder), folder)
    return write_report(Result.load(folder), folder)
