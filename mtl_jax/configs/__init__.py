"""The configs of the experiments. In a checkout they are the files of configs/ at the top; a wheel has them here."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
