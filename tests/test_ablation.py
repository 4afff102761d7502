"""The ablation: what each row's options are, the table's figures, and two rows from training to table."""

import json

import jax
import numpy as np
import pytest
from mtl_jax.configs import ablation as config_file
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import ablation, config, metrics
from mtl_jax.ablation import ROWS, Scores, apply_row
from mtl_jax.config import build
from mtl_jax.errors import ConfigError
from mtl_jax.pretrain import init_backbone
from mtl_jax.workdir.checkpoint import Checkpoints


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_valid_config_of_its_own(name):
    settings = config_file.get_config(name)
    config.validate(settings)
    others = [config.to_json(config_file.get_config(other)) for other in ROWS if other != name]
    assert config.to_json(settings) not in others
    assert ("SS" in ROWS[name].label, "FT" in ROWS[name].label) == (
        settings.meta.learn == "ss", settings.meta.learn in ("head", "weights")
    )  # fmt: skip
    assert settings.hard_tasks.enabled == ("hard" in name)


def test_what_is_learned_is_what_the_label_says():
    base = tiny_config()
    module = build.backbone(base.backbone)
    params = init_backbone(jax.random.key(0), module, (32, 32, 1))["params"]
    learned = {name: build.learned(jax.random.key(1), apply_row(base, name), params, 16) for name in ROWS}
    blocks = {name: {group: set(tree) for group, tree in groups.items()} for name, groups in learned.items()}
    whole = {f"block{number}" for number in (1, 2, 3, 4)}
    assert set(blocks["ft_head"]) == {"head"}
    assert blocks["ft_last"]["params"] == blocks["ss_last"]["ss"] == {"block4"}
    assert blocks["ft_all"]["params"] == blocks["maml"]["params"] == whole
    assert blocks["ss_all"]["ss"] == whole
    assert "params" not in blocks["ss_all"]


@pytest.mark.parametrize("learn", ["ss", "head"])
def test_the_last_block_keeps_batch_norm_to_it_as_well(learn):
    settings = tiny_config()
    settings.meta.update({"learn": learn, "blocks": "last", "norm_affine": True})
    params = init_backbone(jax.random.key(0), build.backbone(settings.backbone), (32, 32, 1))["params"]
    found = build.learned(jax.random.key(1), settings, params, 16)
    assert found["params"] == {"block4": {"norm": params["block4"]["norm"]}}


def test_an_unknown_row_is_refused():
    with pytest.raises(ConfigError, match="row 'ss' is unknown, expected one of train_all"):
        apply_row(tiny_config(), "ss")


def test_rates_of_single_rows_are_read_and_checked():
    assert ablation._rates(["ft_all=1e-4", "ss_all=0.003"]) == {"ft_all": 1e-4, "ss_all": 3e-3}
    with pytest.raises(ConfigError, match="expected ROW=RATE"):
        ablation._rates(["ft_all"])
    with pytest.raises(ConfigError, match="row 'ss' is unknown"):
        ablation._rates(["ss=1"])


def test_the_table_pairs_rows_over_the_tasks_that_both_have():
    few, many = np.array([0.2, 0.4, 0.6]), np.array([0.4, 0.5, 0.9, 0.0, 0.0])
    text, records = ablation.table({"train_all": Scores(few, 0.1, 3), "ss_all": Scores(many, 0.2, 7)})
    difference = metrics.mean_interval(many[:3] - few)
    assert records[1]["difference"] == difference.mean
    assert records[1]["difference_ci95"] == difference.ci95
    assert records[1]["common_tasks"] == 3
    assert records[1]["num_tasks"] == 5
    assert records[0]["difference"] == 0
    assert "| SS [Θ; θ] | 5 | 7, 0.2 | 36.00 ± " in text
    assert "| +20.00 ± " in text


def test_a_row_of_one_task_has_no_interval_and_says_how_many_tasks_are_distinct():
    text, records = ablation.table({
        "train_all": Scores(np.array([0.5]), 0.1, 3, 1), "ss_all": Scores(np.array([0.2, 0.4, 0.6]), 0.1, 3, 2),
    })  # fmt: skip
    assert records[0]["ci95"] is records[0]["difference_ci95"] is records[1]["difference_ci95"] is None
    assert [row["distinct_tasks"] for row in records] == [1, 2]
    assert "| 1 | 3, 0.1 | 50.00 % | +0.00 over 1 |" in text
    assert "| 3, 2 distinct | 3, 0.1 | 40.00 ± " in text


def test_rows_run_from_one_pretraining_to_the_table(tiny_run, tmp_path, monkeypatch):  # noqa: F811
    settings = tiny_config()
    settings.pretrain.init = str(tiny_run)
    settings.inner.steps = 2
    settings.meta.update({"steps": 2, "val_every": 0, "query": 2})
    settings.evaluate.query = 2
    monkeypatch.setattr(ablation, "FACTORS", (1.0, 2.0))
    scores = ablation.run(settings, tmp_path, ["train_all", "maml"], tasks=20, few_tasks=4)
    assert [len(row.accuracies) for row in scores.values()] == [row.distinct for row in scores.values()] == [4, 4]
    assert all(row.lr in (1.0, 2.0) and row.steps in (1, 2) for row in scores.values())
    assert json.loads((tmp_path / "maml" / "config.json").read_text())["pretrain"]["init"] == str(tiny_run)
    assert not (tmp_path / "maml" / "pretrain").exists()
    learned = Checkpoints(tmp_path / "maml" / "meta").read().items["learned"]["params"]
    before = Checkpoints(tiny_run / "pretrain").read(Checkpoints(tiny_run / "pretrain").best()["step"]).items
    kernel = before["params"]["backbone"]["block1"]["conv"]["kernel"]
    assert not np.allclose(learned["block1"]["conv"]["kernel"], kernel)
