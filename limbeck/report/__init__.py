"""The report of a run: one HTML file with everything in it, and the same table for a terminal."""

from limbeck.report.page import Report, render
from limbeck.report.sentences import headline, results_table

__all__ = ["Report", "headline", "render", "results_table"]
