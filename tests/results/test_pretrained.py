"""What the record of MTL on a pre-trained network says: means over seeds, paired differences, both intervals."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from mtl_jax.ablation import Scores
from results import pretrained, records


def test_a_row_is_paired_by_task_and_averaged_over_seeds():
    rng = np.random.default_rng(0)
    first, own = rng.uniform(size=50), rng.uniform(size=(3, 50))
    runs = {seed: {"train_head": Scores(first, 0.1, 5), "ss_last": Scores(own[seed], 0.2, 7)} for seed in range(3)}
    rows = pretrained.summary(runs, {"train_head": 0, "ss_last": 12345})
    assert rows[0]["difference"] == 0 and rows[0]["learned"] == 0
    difference = own - first
    assert rows[1]["accuracy"] == pytest.approx(own.mean())
    assert rows[1]["difference"] == pytest.approx(difference.mean())
    assert rows[1]["difference_ci95"] == pytest.approx(1.96 * difference.mean(0).std() / 50**0.5)
    interval = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference.mean(1)))
    assert rows[1]["difference_seeds_ci95"] == pytest.approx(interval[1] - difference.mean())
    text = records.pretrained_rows({"seeds": [0, 1, 2], "num_tasks": 50, "rows": rows})
    assert "| SS [Θ4; θ] | 12,345 | " in text and " | 7 steps at 0.2 |" in text
    assert ", ".join(f"{100 * one:+.2f}" for one in difference.mean(1)) in text


def test_one_seed_has_no_interval_over_seeds():
    scores = {"train_head": Scores(np.array([0.1, 0.2]), 0.1, 5), "ft_last": Scores(np.array([0.3, 0.1]), 0.1, 5)}
    rows = pretrained.summary({0: scores}, {"train_head": 0, "ft_last": 1})
    assert rows[1]["difference_seeds_ci95"] is None
    assert "| +5.00 | - |" in records.pretrained_rows({"seeds": [0], "num_tasks": 2, "rows": rows})


def test_what_rows_learn_of_the_network():
    flags = argparse.Namespace(shot=1, set="fc100", data="D", cache="", steps=None)
    rows = ["train_head", "ft_head", "ft_last", "ss_last", "ssf_last"]
    numbers = pretrained.learned_numbers(pretrained.config_of(flags, 0), rows)
    expand, depthwise, project, last = 192 * 1152, 9 * 1152, 1152 * 320, 320 * 1280
    norms = 1152 + 1152 + 320 + 1280
    assert numbers == {
        "train_head": 0, "ft_head": 0, "ft_last": expand + depthwise + project + last + 2 * norms,
        "ss_last": expand + 1152 + project + last, "ssf_last": 3 * norms,
    }  # fmt: skip


def test_the_program_goes_on_where_it_stopped_and_writes_a_record(tmp_path, monkeypatch, capsys):
    done, tested = [], []

    def trained(settings, path):
        done.append((settings.seed, settings.meta.learn, settings.meta.steps, settings.meta.val_every))
        (tmp_path / path).mkdir(parents=True, exist_ok=True)

    def scores(settings, place, dataset, count):
        if len(tested) == 2:
            tested.append("stopped")
            raise KeyboardInterrupt
        tested.append(settings.seed)
        return Scores(np.linspace(0, 1, count) * (0.9 + 0.01 * settings.seed), 0.5, 3)

    monkeypatch.setattr(pretrained, "PRETRAINED", tmp_path / "records")
    monkeypatch.setattr(pretrained.build, "dataset", lambda _: SimpleNamespace(name="fc100", fingerprint="f"))
    monkeypatch.setattr(pretrained, "train", trained)
    monkeypatch.setattr(pretrained, "test", scores)
    parser = argparse.ArgumentParser()
    pretrained.add_flags(parser)
    words = f"--data=D --workdir={tmp_path}/runs --steps=7 --tasks=11 --seeds=3 --rows=train_head,ssf_last --commit=abc"
    flags = parser.parse_args(words.split())
    with pytest.raises(KeyboardInterrupt):
        pretrained.main(flags)
    assert pretrained.main(flags) == 0
    assert tested == [0, 0, "stopped", 1, 2]
    assert done == [(0, "none", 7, 7), (0, "ss", 7, 7), (1, "ss", 7, 7), (1, "ss", 7, 7), (2, "ss", 7, 7)]
    record = json.loads((tmp_path / "records" / "fc100-lite0-1shot.json").read_text())
    assert record["seeds"] == [0, 1, 2] and record["commit"] == "abc" and record["steps"] == 7
    assert " --steps=7 --tasks=11 --rows=train_head,ssf_last " in record["command"]
    assert [row["row"] for row in record["rows"]] == ["train_head", "ssf_last"]
    assert [one["accuracy"] for one in record["rows"][1]["seeds"]] == pytest.approx([0.45, 0.455, 0.46])
    assert "| SSF [Θ4; θ] | 11,712 | 45.50" in capsys.readouterr().out
