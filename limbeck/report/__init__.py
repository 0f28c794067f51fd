"""The report of a run: one HTML file with everything in it, and the same table for a terminal."""

from limbeck.report.page import DISTRIBUTION_INTRO, INTRO, Report, render
from limbeck.report.sentences import headline, results_table

__all__ = ["DISTRIBUTION_INTRO", "INTRO", "Report", "headline", "render", "results_table"]
