"""Maps of the frozen trunk in place of images: the same run and figures, computed once, and only where it is right."""

import logging

import jax
import numpy as np
import pytest
from mtl_jax.configs import pretrained
from PIL import Image
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, evaluate, workdir
from mtl_jax.ablation import apply_row
from mtl_jax.config import build
from mtl_jax.data.cache import rows
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import maps, network
from mtl_jax.evaluate.__main__ import main as evaluate_main
from mtl_jax.evaluation import Model
from mtl_jax.launch.signals import Stopped
from mtl_jax.meta import Frozen
from mtl_jax.train import plan, replay, train
from mtl_jax.train.run import dry_run
from mtl_jax.workdir.checkpoint import Checkpoints


@pytest.fixture
def settings(tiny_run, tmp_path):  # noqa: F811
    """The last block's SS on a tiny network, its maps kept below a folder of the test's own."""
    made = tiny_config()
    made.pretrain.init = str(tiny_run)
    made.meta.blocks = "last"
    made.hard_tasks.update({"enabled": True, "round": 2, "extra": 2})
    made.runtime.cache_trunk = True
    return made


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setattr(maps, "folder", lambda _: folder)
    return folder


def model_of(made, run):
    return Model(build.embedding(made), {}, Frozen(*network.pretrained(made, workdir.Workdir(run))))


def refuse(*_):
    pytest.fail("computed again")


@pytest.mark.parametrize("learn", ["ss", pytest.param("weights", marks=pytest.mark.slow)])
def test_a_run_on_maps_is_that_on_images(settings, tmp_path, own_cache, learn):
    settings.meta.learn = learn
    runs = {}
    for kept in (True, False):
        settings.runtime.cache_trunk = kept
        place = tmp_path / str(kept)
        train(settings, str(place))
        items = Checkpoints(place / "meta").read().items
        runs[kept] = items["learned"], items["params"], evaluate.evaluate(settings, str(place))["accuracy"]
        assert len(list(own_cache.glob("trunk-glyphs-*.npy"))) == 3
    for one, other in zip(*(jax.tree.leaves(run[0]) for run in runs.values()), strict=True):
        assert np.abs(one - other).mean() < 2e-3  # Adam takes whole steps for gradients of next to nothing
    jax.tree.map(np.testing.assert_array_equal, runs[True][1], runs[False][1])
    assert runs[True][2] == pytest.approx(runs[False][2], abs=0.03)


@pytest.mark.slow
def test_maps_are_computed_once_for_all_that_is_above_them(settings, tmp_path, own_cache, monkeypatch):
    train(settings, str(tmp_path / "ss"))
    files = sorted(own_cache.glob("*.npy"))
    assert [file.name.split("-")[2] for file in files] == ["train", "val"]
    with monkeypatch.context() as patch:
        patch.setattr(rows, "_write", refuse)
        for row in ("ft_last", "ssf_last"):
            train(apply_row(settings, row), str(tmp_path / row))
        settings.runtime.embed_batch = 7
        settings.meta.shot = 2
        train(settings, str(tmp_path / "other"))
    assert sorted(own_cache.glob("*.npy")) == files


@pytest.mark.slow
def test_another_network_other_images_and_other_preparation_have_maps_of_their_own(settings, own_cache, tiny_run):  # noqa: F811
    split, model = build.dataset(settings.data).splits["val"], model_of(settings, tiny_run)
    maps.in_place_of_images(settings, model, split)
    changed = settings.copy_and_resolve_references()
    changed.data.mean = (0.3,)
    maps.in_place_of_images(changed, model_of(changed, tiny_run), split)
    params = dict(model.frozen.params)
    params["block1"] = jax.tree.map(lambda leaf: leaf * 1.01, params["block1"])
    maps.in_place_of_images(settings, model._replace(frozen=Frozen(params, model.frozen.batch_stats)), split)
    digests = split.digests[::-1]
    maps.in_place_of_images(settings, model, type(split)(**{**vars(split), "digests": digests}))
    assert len(list(own_cache.glob("*.npy"))) == 4
    params = {**model.frozen.params, "block4": params["block1"]}  # above the cut
    maps.in_place_of_images(settings, model._replace(frozen=Frozen(params, model.frozen.batch_stats)), split)
    assert len(list(own_cache.glob("*.npy"))) == 4


@pytest.mark.parametrize(
    "changes",
    [{"meta.blocks": "all"}, {"inner.adapt": "all"}, {"meta.batch_norm": "batch"}, {"runtime.cache_trunk": False}],
)
def test_where_the_trunk_is_not_frozen_images_are_used(settings, tiny_run, changes):  # noqa: F811
    settings.update_from_flattened_dict(changes)
    split, model = build.dataset(settings.data).splits["val"], model_of(settings, tiny_run)
    assert maps.in_place_of_images(settings, model, split) == (model, split)


@pytest.mark.slow
def test_the_network_is_tested_on_other_data_with_maps_of_their_own(settings, tmp_path, own_cache):
    train(settings, str(tmp_path / "run"))
    evaluate_main(["evaluate.py", f"--workdir={tmp_path / 'run'}", "--data=glyphs", "--num_tasks=5"])
    assert len(list(own_cache.glob("trunk-glyphs-test-*.npy"))) == 1


@pytest.mark.slow
def test_a_network_for_colour_is_tested_on_images_of_any_kind_and_size(tmp_path, own_cache):
    made = tiny_config()
    made.backbone.width, made.data.channels, made.pretrain.init = 1.0, 3, "fc100-conv4"
    made.meta.update({"blocks": "last", "steps": 1, "tasks_per_step": 1, "way": 2, "query": 2, "val_every": 0})
    train(made, str(tmp_path / "run"))
    rng = np.random.default_rng(0)
    for mode, size in (("1", (105, 105)), ("L", (28, 28)), ("RGB", (40, 30))):
        folder = tmp_path / "D" / "test" / f"class {mode}"
        folder.mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8))
            image.convert(mode).save(folder / f"{number}.png")
    words = [f"--workdir={tmp_path / 'run'}", f"--data=folder:{tmp_path / 'D'}", "--num_tasks=5"]
    evaluate_main(["evaluate.py", *words, "--config.evaluate.query=3", "--config.runtime.cache_trunk=True"])
    (result,) = (tmp_path / "run" / "evaluation").glob("folder-*.json")
    assert '"num_tasks": 5' in result.read_text()
    (kept,) = own_cache.glob("trunk-folder-test-*.npy")
    assert len(np.load(kept)) == 12


def test_views_of_images_are_not_made_of_maps(settings, tmp_path, own_cache):
    train(settings, str(tmp_path / "run"))
    settings.evaluate.flips = True
    evaluate.evaluate(settings, str(tmp_path / "run"))
    assert not list(own_cache.glob("trunk-glyphs-test-*"))


def test_a_stopped_preparation_goes_on(settings, tiny_run, monkeypatch, own_cache):  # noqa: F811
    monkeypatch.setattr(rows, "PART", 64)
    settings.runtime.embed_batch = 32
    split, model = build.dataset(settings.data).splits["val"], model_of(settings, tiny_run)
    checks = []

    class AfterTen:
        def __bool__(self):
            checks.append(1)
            return len(checks) == 10

    with pytest.raises(Stopped):
        maps.in_place_of_images(settings, model, split, AfterTen())
    assert not list(own_cache.glob("trunk-*.npy"))
    before = len(checks)
    _, seen = maps.in_place_of_images(settings, model, split, AfterTen())
    assert len(checks) - before < -(-len(split.images) // 32)
    settings.runtime.embed_batch = 100
    params, stats = model.frozen
    whole = jax.jit(lambda images: maps.Trunk(model.embed, "block4")(params, stats, images))(
        np.asarray(split.images[-9:])
    )
    np.testing.assert_allclose(seen.images[-9:], whole, rtol=2e-3, atol=1e-5)


def test_maps_beyond_half_precision_are_refused(settings, tiny_run):  # noqa: F811
    split, model = build.dataset(settings.data).splits["val"], model_of(settings, tiny_run)
    params = {**model.frozen.params}
    params["block3"] = jax.tree.map(lambda leaf: leaf * 1e7, params["block3"])
    with pytest.raises(ConfigError, match="too large for half precision; set runtime"):
        maps.in_place_of_images(settings, model._replace(frozen=Frozen(params, model.frozen.batch_stats)), split)


def test_the_plan_counts_what_is_above_the_cut_and_computes_nothing(settings, tmp_path, own_cache):
    text = dry_run(settings, str(tmp_path / "none"))
    assert "maps of 4x4x16 in their place: " in text and "kept in the cache" in text
    dataset, plans = build.dataset(settings.data), []
    for kept in (True, False):
        settings.runtime.cache_trunk = kept
        plans.append(plan.make(settings, dataset, 1).phases[-1])
    assert plans[0].name == "meta" and plans[0].flops < 0.5 * plans[1].flops
    assert not own_cache.exists()


@pytest.mark.slow
def test_a_step_is_replayed_on_maps_and_drawn_as_images(settings, tmp_path):
    train(settings, str(tmp_path / "run"))
    again = replay.replay(settings, str(tmp_path / "run"), ("meta", 4))
    lines = workdir.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    logged = next(line for line in lines if line["step"] == 4 and "meta/loss" in line)
    assert again.parts[0].picture.exists()
    assert again.finite and "meta/loss" in logged


def test_the_log_says_what_is_computed(settings, tiny_run, caplog, monkeypatch):  # noqa: F811
    monkeypatch.setattr(maps, "_EVERY", 0)
    settings.runtime.embed_batch = 16
    split = build.dataset(settings.data).splits["val"]
    with caplog.at_level(logging.INFO):
        maps.in_place_of_images(settings, model_of(settings, tiny_run), split)
    assert f"trunk: computing the maps of val, once: {len(split.images):,} images" in caplog.text
    assert " images/s, " in caplog.text


@pytest.mark.parametrize("words", ["lite0,1shot", "fc100,5shot", "cifar_fs", "miniimagenet,lite0,5shot", ""])
def test_the_config_prepares_images_as_the_network_wants_them(words, caplog):
    made = pretrained.get_config(words)
    config.validate(made)
    assert maps.applies(made) and made.meta.shot == (5 if "5shot" in words else 1)
    network.check_start(made, *network.pretrained(made, workdir.Workdir("none")), (224, 224, 3))
    assert "which was trained with other values" not in caplog.text
    kept = network._kept(made).settings["data"]
    for key in ("image_size", "resize", "interpolation", "channels", "mean", "std"):
        assert config.to_json(made)["data"][key] == kept[key]


def test_a_word_that_is_not_known_is_named():
    with pytest.raises(ConfigError, match="at most one word of each of: lite0; 1shot, 5shot; folder, fc100"):
        pretrained.get_config("lite1")
