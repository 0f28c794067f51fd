"""The report of a run: one HTML file with everything in it, and the same table for a terminal."""

from limbeck.report.contents import Report
from limbeck.report.opening import headline, intro
from limbeck.report.page import render
from limbeck.report.terminal import gain, results_table

__all__ = [
    "Report",
    "gain",
    "headline",
    "intro",
    "render",
    "results_table",
]
