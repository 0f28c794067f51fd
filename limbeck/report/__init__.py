"""The report of a run: one HTML file with everything in it, and the same table for a terminal."""

from limbeck.report.page import DISTRIBUTION_INTRO, INTRO, LEARNING_INTRO, Report, render
from limbeck.report.sentences import gain, headline, results_table

__all__ = [
    "DISTRIBUTION_INTRO",
    "INTRO",
    "LEARNING_INTRO",
    "Report",
    "gain",
    "headline",
    "render",
    "results_table",
]
