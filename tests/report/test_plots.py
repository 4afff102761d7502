"""Figures: what is drawn is what was measured."""

import json

import numpy as np
import pytest

from mtl_jax.errors import MtlError
from mtl_jax.report import comparison_plots, plots


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


def test_a_picture_is_png_and_the_same_bytes_twice(metrics):
    first, second = (plots.png(plots.learning_curves(metrics)) for _ in range(2))
    assert first.startswith(b"\x89PNG") and first == second


def test_chance_and_the_network_before_meta_training_are_in_every_picture_of_accuracy(metrics):
    def drawn(axis):
        return {line.get_label(): line.get_ydata()[0] for line in axis.lines}

    before, after = plots.learning_curves(metrics, chance=0.2, baseline=0.4).axes[:2]
    assert drawn(before)["chance (20 %)"] == 20 and "pre-training only (40.0 %)" not in drawn(before)
    assert drawn(after)["chance (20 %)"] == 20 and drawn(after)["pre-training only (40.0 %)"] == 40
    (axis,) = plots.accuracy_by_step(
        np.array([0.2, 0.6]), np.array([0.1, 0.1]), chance=0.2, baseline=np.array([0.2, 0.5])
    ).axes
    assert drawn(axis) == {"this network": 20, "pre-training only": 20, "chance (20 %)": 20}
    (axis,) = plots.class_bars(["a", "b"], [0.5, 0.7], chance=0.5, baseline=[0.4, 0.6]).axes
    marks, chance = axis.lines
    np.testing.assert_allclose(marks.get_xdata(), [40, 60])
    assert chance.get_xdata()[0] == 50
    (axis,) = comparison_plots.runs(["a", "b"], [(0.5, 0.1), (0.6, None)], [0.4, None], 0.2).axes
    assert {"pre-training only", "chance (20 %)"} <= set(axis.get_legend_handles_labels()[1])


def test_a_histogram_counts_every_task_once_between_whole_ticks():
    accuracies = np.random.default_rng(0).integers(20, 76, 40) / 75
    baseline = np.full(40, 15 / 75)
    (axis,) = plots.histogram(accuracies, 1 / 75, chance=0.2, baseline=baseline).axes
    assert sum(bar.get_height() for bar in axis.patches if hasattr(bar, "get_height")) == 40
    edges = np.array([bar.get_x() for bar in axis.patches if hasattr(bar, "get_x")])
    nearest = np.abs(edges[:, None] - 100 * np.unique(accuracies)).min()
    assert nearest > 0.3  # no accuracy lies on an edge, where rounding would decide
    assert all(float(tick).is_integer() for tick in axis.get_yticks())
    few = plots.histogram(np.array([0.2, 0.4]), 1 / 75).axes[0]
    assert all(float(tick).is_integer() for tick in few.get_yticks())
