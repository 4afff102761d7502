"""Reports for people: the HTML page of a run, a comparison, plots. Start with page.py."""

from mtl_jax.report.comparison import compare
from mtl_jax.report.page import report

__all__ = ["compare", "report"]
