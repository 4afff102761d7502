"""`train.py --num_seeds`: a workdir a seed, the table's figures, and what is refused before anything is trained."""

import json

import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, evaluate
from mtl_jax.errors import ConfigError
from mtl_jax.launch import hosts
from mtl_jax.train import seeds


def test_each_seed_is_a_run_of_its_own_tested_on_the_same_tasks(monkeypatch, tmp_path):
    trained, tested = [], []

    def note(settings, path, hooks, label):
        trained.append((settings.seed, path, label))

    def result(settings, path):
        tested.append(path)
        shared = dict.fromkeys(seeds.SHARED, settings.evaluate.seed)
        return {**shared, "accuracy": 0.5 + settings.seed / 100, "ci95": 0.01, "checkpoint_step": 2}

    monkeypatch.setattr(
        seeds, "train", lambda settings, path, hooks, label: trained.append((settings.seed, path, label))
    )
    monkeypatch.setattr(evaluate, "evaluate", result)
    settings = tiny_config(seed=7)
    found = seeds.run(settings, tmp_path, 3, argv=["train.py", "--num_seeds=3"])
    assert trained == [(7 + n, str(tmp_path / f"seed-{n}"), f"seed {7 + n} ({n + 1} of 3)") for n in range(3)]
    assert tested == [path for _, path, _ in trained] and list(found) == [7, 8, 9]
    assert settings.seed == 7
    assert all((tmp_path / f"seed-{n}" / "commands.jsonl").exists() for n in range(3))


def test_the_table_has_the_sample_deviation():
    names = {"dataset": "glyphs", "fingerprint": "0123456789abcdef", "episodes": "fedcba9876543210"}
    shared = dict.fromkeys(seeds.SHARED, 1) | names
    results = {
        s: {**shared, "accuracy": a, "ci95": 0.01, "checkpoint_step": s} for s, a in ((3, 0.5), (4, 0.6), (5, 0.61))
    }
    text, record = seeds.table(results)
    values = np.array([0.5, 0.6, 0.61])
    expected = {"mean": values.mean(), "std": (((values - values.mean()) ** 2).sum() / 2) ** 0.5}
    assert {name: record[name] for name in expected} == pytest.approx(expected)
    assert (record["least"], record["greatest"]) == (0.5, 0.61)
    assert [row["seed"] for row in record["seeds"]] == [3, 4, 5]
    assert (
        "| 4 | 60.00 ± 1.00 % |" in text and "| mean of 3 | 57.00 %, standard deviation 6.08, 50.00 to 61.00 |" in text
    )
    protocol = (
        "1 1-way 1-shot, 1 task of glyphs 0123456789ab (chance 100 %, 1 query a class, batch norm: 1, "
        "episodes fedcba987654)"
    )
    assert f"| seed | {protocol} |" in text
    assert (record["dataset"], record["fingerprint"]) == ("glyphs", "0123456789abcdef")


def test_one_seed_has_no_deviation_and_one_task_no_interval():
    shared = dict.fromkeys(seeds.SHARED, 1) | {"fingerprint": "0123456789abcdef", "episodes": "fedcba9876543210"}
    text, record = seeds.table({3: {**shared, "accuracy": 0.5, "ci95": None, "checkpoint_step": 2}})
    assert "| 3 | 50.00 % |" in text
    assert "±" not in text and "deviation" not in text
    assert record["std"] is None and record["seeds"][0]["ci95"] is None


def test_what_is_done_is_not_done_again(tiny_run, tmp_path, capsys):  # noqa: F811
    (tmp_path / "seed-0").symlink_to(tiny_run)
    before = (tiny_run / "metrics.jsonl").read_bytes()
    seeds.main(config.read(tiny_run / "config.json"), str(tmp_path), 1, ["train.py", "--num_seeds=1"])
    assert (tiny_run / "metrics.jsonl").read_bytes() == before
    record = json.loads((tmp_path / "seeds.json").read_text())
    own = json.loads((tiny_run / "evaluation" / "test.json").read_text())
    assert record["mean"] == own["accuracy"] and record["episodes"] == own["episodes"]
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text()


def test_what_cannot_be_is_refused(tiny_run, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="--num_seeds=0, expected 1 or more"):
        seeds.run(tiny_config(), tmp_path, 0)
    with pytest.raises(ConfigError, match="holds one run; --num_seeds makes a folder of runs"):
        seeds.run(tiny_config(), tiny_run, 2)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_several_processes_the_first_writes_and_prints(monkeypatch, tmp_path, capsys, is_first):
    shared = dict.fromkeys(seeds.SHARED, 1) | {
        "fingerprint": "0123456789abcdef",
        "episodes": "fedcba9876543210",
        "accuracy": 0.5,
        "ci95": 0.01,
        "checkpoint_step": 2,
    }
    monkeypatch.setattr(seeds, "train", lambda settings, path, hooks, label: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda settings, path: shared)
    monkeypatch.setattr(hosts, "is_first", lambda: is_first)
    seeds.main(tiny_config(), str(tmp_path), 2, ["train.py", "--num_seeds=2"])
    written = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert written == ({"table.md", "seeds.json", "commands.jsonl"} if is_first else set())
    assert bool(capsys.readouterr().out) == is_first
