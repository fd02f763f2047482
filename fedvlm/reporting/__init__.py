"""Tables, plots and the HTML report of a result."""

from fedvlm.reporting.page import write_report
from fedvlm.reporting.plots import plot_bytes, plot_domains, plot_rounds, save_plots
from fedvlm.reporting.tables import cost_line, summary_table

__all__ = [
    "cost_line",
    "plot_bytes",
    "plot_domains",
    "plot_rounds",
    "save_plots",
    "summary_table",
    "write_report",
]
