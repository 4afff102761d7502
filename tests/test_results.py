"""The tables come from the JSON files; the kept networks and the packaged one are what they are said to be."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtl_jax import build, kept_weights
from mtl_jax.classifier import FewShotClassifier
from mtl_jax.data import Dataset
from mtl_jax.errors import CheckpointError
from results import check, measure, records

ROOT = Path(__file__).parents[1]
UNPACK = ROOT.parent / "shared" / "data" / "unpack.py"
ROW = "omniglot-conv4-5way-1shot-train_head-seed0"


@pytest.mark.parametrize("kind", records.PLACES)
def test_tables_are_what_the_files_say(kind):
    page, marker = records.PLACES[kind]
    text = (ROOT / page).read_text()
    assert records.with_table(text, records.TABLES[kind](), marker) == text
    assert "not run" in (ROOT / "docs/results.md").read_text().lower()


def test_every_row_has_what_a_figure_must_not_stand_without():
    rows = records.measured_rows()
    assert rows
    for name, row in rows.items():
        assert len(row["fingerprint"]) == 32, name
        assert row["commands"] and row["commit"] and row["source"] and row["reduced"] and row["device"], name
        for figure in row["figures"]:
            assert 0 < figure["accuracy"] < 1 and len(figure["episodes"]) == 64, name
            assert 0 < figure["ci95"] < 0.02, name
            assert figure["distinct_tasks"] == figure["num_tasks"], name
        assert not any("/tmp" in command or "/work" in command for command in row["commands"]), name


def test_rows_of_one_table_are_on_the_same_tasks():
    tables = {}
    for row in records.measured_rows().values():
        key = row["data"], row["way"], row["shot"]
        tables.setdefault(key, set()).add(tuple(figure["episodes"] for figure in row["figures"]))
    assert all(len(hashes) == 1 for hashes in tables.values())


def test_kept_networks_have_their_fingerprints_and_are_small():
    rows = records.measured_rows()
    for name, row in rows.items():
        path = records.FOLDER / row["weights"]
        if row.get("weights_bytes", 0) > 5e6 or not row.get("kept", True):
            assert not path.exists(), f"{name}: not to be kept"
            continue
        assert kept_weights.digest(path) == row["weights_sha256"], name
        assert path.stat().st_size < 5e6
        kept = kept_weights.read(path)
        assert kept.settings["data"]["path"] == ""
        assert build.protocol(kept.settings).inner.steps == row["inner_steps"], name  # also of an older version's file
    assert sum(path.stat().st_size for path in (records.FOLDER / "weights").iterdir()) < 20e6


def test_what_was_not_run_carries_no_number():
    for row in json.loads(records.NOT_RUN.read_text()):
        assert set(row) == {"what", "shot", "needs", "command"}
        assert row["command"].startswith("python ")


def test_the_packaged_network_classifies_photographs():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 60, (4, 40, 50, 3), np.uint8)
    bright = rng.integers(190, 255, (4, 40, 50, 3), np.uint8)
    classifier = FewShotClassifier.from_pretrained().fit([*grey[:3], *bright[:3]], ["dark"] * 3 + ["bright"] * 3)
    assert classifier.predict([grey[3], bright[3]]).tolist() == ["dark", "bright"]
    with pytest.raises(CheckpointError, match="no network 'resnet' comes with the package, expected one of: fc100"):
        FewShotClassifier.from_pretrained("resnet")


def test_a_damaged_file_is_refused(tmp_path):
    whole = kept_weights.packaged("fc100-conv4").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:2000])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: not a safetensors file"):
        kept_weights.read(tmp_path / "cut.safetensors")


def test_a_network_too_large_to_be_kept_is_skipped(monkeypatch, tmp_path, capsys):
    rows = records.measured_rows()
    name = next(name for name, row in rows.items() if row.get("weights_bytes", 0) > 5e6)
    (tmp_path / rows[name]["data"]).mkdir()
    monkeypatch.setattr(check, "measured_rows", lambda: {name: rows[name]})
    assert check.main(argparse.Namespace(only="", data=tmp_path)) == 1
    assert f"{name}: skipped, its network of 32 MB is not kept\n0 rows tested" in capsys.readouterr().out


def test_other_images_are_a_problem_even_where_the_figure_is_the_same(monkeypatch):
    row = records.measured_rows()[ROW]
    accuracies = np.full(10_000, row["figures"][0]["accuracy"])
    hashes = tuple(figure["episodes"] for figure in row["figures"])
    measured = measure.Measured(accuracies, None, hashes, (600, 10_000), "f" * 32)
    monkeypatch.setattr(measure, "test", lambda kept, dataset: measured)
    found = Dataset("omniglot", "", "f" * 32, {})
    problems, _ = check.compare(None, {**row, "figures": row["figures"][:2]}, found)
    assert problems == [f"other images: fingerprint {'f' * 12}, not {row['fingerprint'][:12]}"]


@pytest.mark.slow
def test_a_kept_network_gives_its_figures_again(tmp_path):
    if not UNPACK.exists():
        pytest.skip(f"no images of Omniglot: {UNPACK} is not there")
    subprocess.run([sys.executable, UNPACK, "omniglot", tmp_path / "omniglot"], check=True)
    row = records.measured_rows()[ROW]
    kept = kept_weights.read(records.FOLDER / row["weights"])
    data = {**kept.settings["data"], "path": str(tmp_path / "omniglot"), "cache_dir": str(tmp_path / "cache")}
    problems, _ = check.compare(kept, row, build.dataset(data))
    assert not problems
