"""What a person reads of a run: an HTML page, a comparison, plots. Start with page.py."""

from mtl_jax.report.comparison import compare
from mtl_jax.report.page import report

__all__ = ["compare", "report"]
