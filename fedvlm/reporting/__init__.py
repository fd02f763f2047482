"""Tables, plots, and the pages of runs and comparisons.

Names are imported when they are first used: a page needs no plots, and a plot no pages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvlm.reporting.comparison import Comparison
    from fedvlm.reporting.comparison_page import write_comparison
    from fedvlm.reporting.pages import report_of
    from fedvlm.reporting.plots import plot_bytes, plot_domains, plot_rounds, save_plots
    from fedvlm.reporting.run_page import write_report
    from fedvlm.reporting.tables import cost_line, summary_table

_WHERE = {
    "Comparison": "comparison",
    "cost_line": "tables",
    "plot_bytes": "plots",
    "plot_domains": "plots",
    "plot_rounds": "plots",
    "report_of": "pages",
    "save_plots": "plots",
    "summary_table": "tables",
    "write_comparison": "comparison_page",
    "write_report": "run_page",
}

__all__ = [
    "Comparison",
    "cost_line",
    "plot_bytes",
    "plot_domains",
    "plot_rounds",
    "report_of",
    "save_plots",
    "summary_table",
    "write_comparison",
    "write_report",
]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"fedvlm.reporting.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fedvlm.reporting' has no attribute {name!r}")
