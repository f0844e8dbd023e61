"""Results one can look at: a page per run, a page that compares runs, and the model card."""

from contraprune.report.card import write_card
from contraprune.report.comparison import Effect, write_comparison
from contraprune.report.page import write_report

__all__ = ["Effect", "write_card", "write_comparison", "write_report"]
