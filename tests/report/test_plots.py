"""Figures: what is drawn is what was measured."""

import json

import numpy as np
import pytest

from mtl_jax.errors import MtlError
from mtl_jax.report import plots


@pytest.fixture
def metrics(tmp_path):
    records = [{"step": s, "pretrain/loss": 3 - s / 100, "pretrain/accuracy": s / 200} for s in (20, 40, 60)]
    records += [{"step": 50, "pretrain/val_accuracy": 0.5, "pretrain/val_ci95": 0.02}]
    records += [{"step": s, "meta/loss": 1.0, "meta/accuracy": 0.75} for s in (20, 40)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_learning_curves_have_a_column_a_phase_and_the_files_numbers(metrics):
    axes = plots.learning_curves(metrics).axes
    assert [axis.get_title() for axis in axes] == ["pre-training", "meta-training", "", ""]
    training, validation = axes[0].lines
    np.testing.assert_allclose(training.get_xydata(), [[20, 10], [40, 20], [60, 30]])
    np.testing.assert_allclose(validation.get_xydata(), [[50, 50]])
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), [2.8, 2.6, 2.4])


def test_a_phase_that_was_not_run_has_no_column(metrics):
    metrics.write_text('{"step": 20, "meta/loss": 1.0, "meta/accuracy": 0.5}\n')
    assert [axis.get_title() for axis in plots.learning_curves(metrics).axes] == ["meta-training", ""]


def test_a_run_without_metrics_is_an_error_of_one_line(metrics):
    metrics.write_text("")
    with pytest.raises(MtlError, match="no metrics yet"):
        plots.learning_curves(metrics)


def test_saved_pictures_are_png_and_the_same_bytes_twice(metrics, tmp_path):
    for name in ("a.png", "b.png"):
        plots.save(plots.learning_curves(metrics), tmp_path / "new" / name)
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG") and first == second
    assert plots.png(plots.learning_curves(metrics)).startswith(b"\x89PNG")


def test_a_path_that_cannot_be_written_is_an_error_of_one_line(metrics, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlError, match=r"cannot be written"):
        plots.save(plots.learning_curves(metrics), tmp_path / "file" / "a.png")
