"""The tables come from the JSON files; the kept networks and the packaged one are what they are said to be."""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mtl_jax.configs import default, glyphs

from mtl_jax import ablation, base_learner, config, scale_shift
from mtl_jax.classify.classifier import FewShotClassifier
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluation import Model
from mtl_jax.export import stablehlo
from mtl_jax.meta import Frozen, backbone_params
from mtl_jax.reference_weights import kept_networks
from mtl_jax.reference_weights.kept_networks import Kept
from results import check, gpu, imagenet, ladder, measure, records, sweep

ROOT = Path(__file__).parents[2]
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
        assert kept_networks.digest(path) == row["weights_sha256"], name
        assert path.stat().st_size < 5e6
        kept = kept_networks.read(path)
        assert kept.settings["data"]["path"] == ""
        assert build.protocol(kept.settings).inner.steps == row["inner_steps"], name  # also of an older version's file
    assert sum(path.stat().st_size for path in (records.FOLDER / "weights").iterdir()) < 20e6


def test_what_was_not_run_carries_no_number():
    for row in json.loads(records.NOT_RUN.read_text()):
        assert set(row) == {"what", "shot", "needs", "command"}
        assert row["command"].startswith("python ")
    short = records.short_table().splitlines()
    assert len(short) == 2 + 8
    for line in short[2:]:
        *_, first, second, seed, device = (cell.strip() for cell in line.strip("|").split("|"))
        assert (first == second == "not run") == (not seed) == (not device), line


@pytest.mark.parametrize("name", ["fc100-conv4", "imagenet-lite0"])
def test_the_packaged_networks_classify_photographs(name):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 60, (4, 40, 50, 3), np.uint8)
    bright = rng.integers(190, 255, (4, 40, 50, 3), np.uint8)
    classifier = FewShotClassifier.from_pretrained(name).fit([*grey[:3], *bright[:3]], ["dark"] * 3 + ["bright"] * 3)
    assert classifier.predict([grey[3], bright[3]]).tolist() == ["dark", "bright"]
    known = "give fc100-conv4, imagenet-lite0, a weight file, or hf-hub:OWNER/NAME"
    missing = f"no bundled network is called 'resnet', and there is no such file; {known}"
    with pytest.raises(CheckpointError, match=missing):
        FewShotClassifier.from_pretrained("resnet")


def test_a_damaged_file_is_refused(tmp_path):
    whole = kept_networks.packaged("fc100-conv4").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:2000])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: not a safetensors file"):
        kept_networks.read(tmp_path / "cut.safetensors")


def tiny_kept(**learned):
    """A network of conv4 at a tenth of its width, with what was learned on it."""
    settings = config.to_json(glyphs.get_config("1shot"))
    settings["backbone"]["width"] = 0.1
    variables = build.backbone(settings["backbone"]).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    head = base_learner.init_head(jax.random.key(1), 6, 5)
    frozen = Frozen(variables["params"], variables["batch_stats"])
    return Kept(settings, 3, (28, 28, 1), Model(build.embedding(settings), {"head": head, **learned}, frozen))


def test_phi_alone_stands_on_the_file_of_its_network(tmp_path):
    """In half precision, to half precision's rounding; on another file it is refused."""
    base, phi, other = (tmp_path / f"{name}.safetensors" for name in ("base", "phi", "other"))
    kept_networks.write(base, tiny_kept(), dtype=np.float16)
    frozen = kept_networks.read(base).model.frozen
    ss = jax.tree.map(lambda leaf: leaf + 0.25, scale_shift.init(frozen.params))
    kept = tiny_kept(ss=ss)
    kept = kept._replace(model=kept.model._replace(frozen=frozen))
    kept_networks.write(phi, kept, base=base, dtype=np.float16)
    kept_networks.write(other, kept)
    assert phi.stat().st_size < base.stat().st_size
    images = jax.random.uniform(jax.random.key(2), (3, 28, 28, 1)) * 255
    features = [
        model.embed(backbone_params(model.learned, model.frozen), model.frozen.batch_stats, images)[0]
        for model in (kept.model, kept_networks.read(phi).model, kept_networks.read(other).model)
    ]
    np.testing.assert_allclose(features[0], features[1], rtol=1e-6)  # 1.25 and 0.25 are exact in half precision
    np.testing.assert_allclose(features[0], features[2], rtol=1e-5)
    base.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match=r"phi\.safetensors: needs base\.safetensors beside it"):
        kept_networks.read(phi)
    with pytest.raises(CheckpointError, match="params were learned"):
        kept_networks.write(phi, tiny_kept(params=frozen.params), base=other)


def test_a_kept_network_is_something_to_start_from(tmp_path):
    kept_networks.write(tmp_path / "net.safetensors", tiny_kept())
    settings = tiny_kept().settings
    params, _ = network.backbone(settings, str(tmp_path / "net.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, params, tiny_kept().model.frozen.params)
    settings["backbone"]["width"] = 0.2
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        network.backbone(settings, str(tmp_path / "net.safetensors"))


def test_a_packed_plan_comes_out_as_it_went_in(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PIECE", 1000)
    files = {"a.json": b"{}", "weights/b": np.random.default_rng(0).bytes(5000)}
    for name, content in files.items():
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kept" / name).write_bytes(content)
    parts = gpu.pack(tmp_path / "kept", tmp_path / "out")
    assert len(parts) > 5 and all(part.stat().st_size <= 1000 for part in parts)
    gpu.unpack(parts, tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in files} == files
    with pytest.raises(ConfigError, match="not all pieces"):
        gpu.unpack(parts[:-1], tmp_path / "cut")


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_every_rung_is_a_config(rung):
    flags = argparse.Namespace(data="D", workdir="W", width=0.25, epochs=15, seed=1)
    settings = ladder.config_of(rung, flags)
    config.validate(settings)
    assert settings.pretrain.steps == 15 * (36_000 // settings.pretrain.batch_size)
    below = ladder.RUNGS[rung].after
    if below:
        then = ladder.config_of(below, flags)
        lines = config.compare(config.to_json(then), config.to_json(settings), ())
        changed = {line.split(":")[0] for line in lines}
        taught = {"pretrain.teacher"} if ladder.RUNGS[rung].teacher else set()
        assert changed and changed <= set(ladder.RUNGS[rung].options) | taught


@pytest.mark.parametrize("variant", sweep.VARIANTS)
def test_every_variant_of_the_sweep_is_a_config(variant):
    flags = argparse.Namespace(data="D", width=0.25, shot=5, steps=400, seed=0, init="runs/W")
    config.validate(sweep.config_of(variant, flags))


@pytest.mark.parametrize("plan", gpu.PLANS)
def test_every_plan_is_made_of_configs(plan, tmp_path):
    flags = argparse.Namespace(
        data="D", plan=plan, minutes=8.0, workdir=str(tmp_path), output="", init="", commit="", seed=0, scale=1.0
    )
    session = gpu.Session(flags)
    for row, shot in session.plan.rows:
        settings = ablation.apply_row(session.config(shot), row)
        settings.pretrain.init = "runs/W"
        config.validate(settings)
    assert "train_head, 5-shot" in session.describe()


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
    kept = kept_networks.read(records.FOLDER / row["weights"])
    data = {**kept.settings["data"], "path": str(tmp_path / "omniglot"), "cache_dir": str(tmp_path / "cache")}
    problems, _ = check.compare(kept, row, build.dataset(data))
    assert not problems


def test_the_description_of_the_network_for_photographs_is_applied():
    """A photograph of any size is prepared as the network wants it, in Python and in an exported file."""
    classifier = FewShotClassifier.from_pretrained("imagenet-lite0")
    wanted = Transform(224, 224, 3, convert=True, interpolation="bicubic")
    assert classifier.image_transform == wanted
    facts = {**classifier.embed.settings["data"], "image_shape": [224, 224, 3]}
    assert stablehlo.Exported(types.SimpleNamespace(call=None), facts).transform == wanted
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    np.testing.assert_allclose(classifier.embed.embed.prepare(pixels), (pixels - 127.0) / 128, atol=1e-6)


def test_a_draw_has_five_classes_and_no_photograph_twice():
    split = types.SimpleNamespace(labels=np.repeat(np.arange(8), 25), class_names=tuple("abcdefgh"))
    rows = imagenet.draw(split, 3)
    assert rows.shape == (5, 23) and len(np.unique(rows)) == 115
    assert (split.labels[rows] == split.labels[rows[:, :1]]).all()


def test_weights_for_photographs_are_refused_with_another_epsilon():
    settings = default.get_config()
    settings.backbone.name = "efficientnet_lite0"
    path = str(kept_networks.packaged("imagenet-lite0"))
    with pytest.raises(ConfigError, match=r"norm_epsilon 0.001, .* 1e-05; give --config.backbone.norm_epsilon=0.001"):
        network.backbone(settings, path)
    settings.backbone.norm_epsilon = 1e-3
    params, _ = network.backbone(settings, path)
    assert params["stage7"]["conv"]["kernel"].shape == (1, 1, 320, 1280)
