"""Weight files of the two references: both directions, every format, everything that is wrong listed."""

import argparse
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import reference_formats as formats
from mtl_jax.configs import glyphs

import mtl_jax
from mtl_jax import evaluate, reference_weights
from mtl_jax.config import rules
from mtl_jax.errors import CheckpointError, ConfigError, DataError, MtlError
from mtl_jax.evaluate import network
from mtl_jax.launch import program
from mtl_jax.reference_weights import __main__ as reference_weights_main
from mtl_jax.reference_weights import file_formats
from mtl_jax.reference_weights.pytorch import to_state_dict
from mtl_jax.reference_weights.tensorflow import to_dicts
from mtl_jax.workdir.named_arrays import flatten


@pytest.fixture
def state():
    """A meta-training state dict in the PyTorch implementation's key names."""
    return formats.state_dict(np.random.default_rng(0))


@pytest.fixture
def dicts():
    """The TensorFlow implementation's three dicts of a resnet12."""
    return formats.dicts(np.random.default_rng(1), "resnet12")


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_a_state_dict_goes_there_and_back(state):
    assert len(state) == 202
    loaded = mtl_jax.load_reference_weights({"params": state})
    assert (loaded.backbone, loaded.width, loaded.head["kernel"].shape) == ("resnet25", 0.05, (32, 5))
    back = to_state_dict(loaded)["params"]
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert_same(back, {**state, **dict.fromkeys(counters, 0)})
    assert {key: value.dtype for key, value in back.items()} == {key: value.dtype for key, value in state.items()}


def test_a_bare_state_dict_and_one_of_pytorch_0_4_0_are_the_same(state):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    loaded = [mtl_jax.load_reference_weights(mapping) for mapping in ({"params": state}, state, old)]
    for other in loaded[1:]:
        jax.tree.map(np.testing.assert_array_equal, loaded[0][1:], other[1:])


@pytest.mark.parametrize("wrap", [dict, lambda state: {"params": state}])
def test_a_pre_training_file_has_the_encoder_alone(wrap):
    state = formats.state_dict(np.random.default_rng(2), meta=False)
    loaded = mtl_jax.load_reference_weights(wrap(state))
    assert loaded.ss is None
    assert loaded.head is None
    assert loaded.params["stem"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    assert to_state_dict(loaded)["params"].keys() == state.keys()


def test_everything_that_is_wrong_is_listed(state):
    state["encoder.layer9.weight"] = state.pop("encoder.layer1.0.conv1.weight")
    state["encoder.bn1.bias"] = np.zeros(7)
    state["base_learner.vars.1"] = state["base_learner.vars.1"] + 1
    state["encoder.layer2.0.bn1.weight"] = state["encoder.layer2.0.bn1.weight"].astype(int)
    with pytest.raises(CheckpointError) as caught:
        mtl_jax.load_reference_weights({"params": state})
    for part in (
        "missing encoder.layer1.0.conv1.weight", "surplus encoder.layer9.weight", "encoder.bn1.bias is float64[7]",
        "expected float [4]", "base_learner.vars.1 contradicts", "encoder.layer2.0.bn1.weight is int64[16]",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_mapping_of_something_else_is_named():
    with pytest.raises(CheckpointError, match=r"found fc\.weight; expected conv1\.weight"):
        mtl_jax.load_reference_weights({"fc.weight": np.zeros(3)})


WRAPPED = {
    "DataParallel": (True, lambda s: {"params": {f"module.{key}": value for key, value in s.items()}}),
    "a trainer": (False, lambda s: {"epoch": 9, "state_dict": s, "optimizer": {"state": {}, "param_groups": []}}),
    "RFS' wrapper": (False, lambda s: {"epoch": 9, "model": s}),
    "of wrappers": (True, lambda s: {"model": {"state_dict": s}}),
    "of unknown wrappers": (False, lambda s: {"checkpoint": {"learner": {"state_dict": s}}, "epoch": 9}),
    "a prefix around encoder and head": (True, lambda s: {"params": {f"model.{key}": v for key, v in s.items()}}),
    "a prefix of its own": (False, lambda s: {f"backbone.{key}": value for key, value in s.items()}),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_state_dicts_as_trainers_wrap_them(case):
    meta, wrap = WRAPPED[case]
    state = formats.state_dict(np.random.default_rng(2), meta=meta)
    loaded = mtl_jax.load_reference_weights(wrap(state))
    jax.tree.map(np.testing.assert_array_equal, loaded[1:], mtl_jax.load_reference_weights(state)[1:])


def test_wrappers_without_end_end():
    endless = {}
    endless["params"] = endless
    with pytest.raises(CheckpointError, match="not the weights of a known network: found params"):
        mtl_jax.load_reference_weights(endless)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("suffix", "beside"), [(".pt", None), (".pth.tar", argparse.Namespace(rate=0.1))])
def test_other_suffixes_and_a_command_line_beside_the_weights(tmp_path, state, suffix, beside, zipped):
    torch = pytest.importorskip("torch")
    tensors, path = {key: torch.tensor(value) for key, value in state.items()}, tmp_path / f"max_acc{suffix}"
    torch.save({"params": tensors, "args": beside}, path, _use_new_zipfile_serialization=zipped)
    loaded = mtl_jax.load_reference_weights(path)
    jax.tree.map(np.testing.assert_array_equal, loaded[1:], mtl_jax.load_reference_weights(state)[1:])
    assert rules.is_weights(str(path))


def test_a_web_page_and_a_whole_network_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    page, network = tmp_path / "page.pth", tmp_path / "network.pth"
    page.write_text("\n<!DOCTYPE html><html>too large to scan for viruses</html>")
    with pytest.raises(CheckpointError, match=r"page\.pth: a web page, not a PyTorch file; give the right file"):
        mtl_jax.load_reference_weights(page)
    for content in (torch.nn.Linear(2, 2), {"epoch": 9, "learner": torch.nn.Linear(2, 2)}):
        torch.save(content, network)
        with pytest.raises(
            CheckpointError, match=r"network\.pth.*needs the code of torch\.nn.*Linear; save .*state_dict"
        ):
            mtl_jax.load_reference_weights(network)


@pytest.mark.parametrize(("suffix", "kind"), [("npy", "NumPy"), ("safetensors", "safetensors"), ("bin", "PyTorch")])
def test_what_stands_in_place_of_weights_of_any_kind_is_named(tmp_path, suffix, kind):
    file = tmp_path / f"a.{suffix}"
    for content, words in (
        (b"<!DOCTYPE html>", f"a web page, not a {kind} file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", f"Git LFS pointer .*, not a {kind} file"),
        (b"", "an empty file"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"a\.{suffix}: .*{words}"):
            mtl_jax.load_reference_weights(file)


def test_another_networks_weights_cannot_be_written_as_pth():
    weights = reference_weights.ReferenceWeights("conv4", {}, None, None, None)
    with pytest.raises(CheckpointError, match=r"only resnet25 and resnet12_640 can be written as \.pth, not conv4"):
        to_state_dict(weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_files_old_and_new(tmp_path, state, zipped):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save({"params": tensors}, tmp_path / "max_acc.pth", _use_new_zipfile_serialization=zipped)
    loaded = mtl_jax.load_reference_weights(tmp_path / "max_acc.pth")
    jax.tree.map(np.testing.assert_array_equal, loaded[1:], mtl_jax.load_reference_weights({"params": state})[1:])
    reference_weights.export_pth(loaded, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["params"]
    assert all(torch.equal(back[key], value) for key, value in tensors.items() if "num_batches" not in key)


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_no_file_can_run_code(tmp_path, capsys):
    np.save(tmp_path / "weights.npy", np.array({"block1_conv1": _Evil()}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="print"):
        mtl_jax.load_reference_weights(tmp_path / "weights.npy")
    torch = pytest.importorskip("torch")
    torch.save({"params": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not a PyTorch file of plain tensors"):
        mtl_jax.load_reference_weights(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_pth_files_are_read_without_torch_and_written_with_it(tmp_path, monkeypatch, state):
    torch = pytest.importorskip("torch")
    torch.save({key: torch.tensor(value) for key, value in state.items()}, tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    loaded = mtl_jax.load_reference_weights(tmp_path / "a.pth")
    with pytest.raises(MtlError, match=r"b\.pth: PyTorch writes \.pth files; run: pip install 'mtl_jax\[torch\]'"):
        reference_weights.export_pth(loaded, tmp_path / "b.pth")


def test_what_a_file_holds_decides_not_its_name(tmp_path, state):
    reference_weights.export_safetensors(mtl_jax.load_reference_weights(state), tmp_path / "a.pth")
    assert mtl_jax.load_reference_weights(tmp_path / "a.pth").backbone == "resnet25"
    (tmp_path / "a.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"a\.txt: not a weight file; expected one of \.pth"):
        mtl_jax.load_reference_weights(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}"])
@pytest.mark.parametrize("suffix", rules.WEIGHT_SUFFIXES)
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(MtlError, match=f"damaged{suffix}"):
        mtl_jax.load_reference_weights(path)


@pytest.mark.parametrize("backbone", ["resnet12", "resnet18"])
def test_tensorflow_dicts_go_there_and_back(backbone):
    dicts = formats.dicts(np.random.default_rng(3), backbone)
    loaded = mtl_jax.load_reference_weights(dicts)
    assert (loaded.backbone, loaded.batch_stats) == (backbone, None)
    back = to_dicts(loaded)
    used = {key: value for key, value in dicts["weights"].items() if key not in ("w5", "b5")}
    assert_same(back["weights"], used)
    assert_same(back["fc_weights"], dicts["fc_weights"])
    for key, value in dicts["ss_weights"].items():
        np.testing.assert_allclose(back["ss_weights"][key], value, rtol=1e-12, err_msg=key)
    module = loaded.module(resize=0)
    variables = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(loaded.params)


def test_the_bias_of_the_meta_phases_is_the_one_in_ss_weights(dicts):
    loaded = mtl_jax.load_reference_weights(dicts)
    merged = mtl_jax.apply_scale_shift(loaded.params, loaded.ss)
    np.testing.assert_allclose(merged["block2"]["conv3"]["bias"], dicts["ss_weights"]["block2_bias3"], rtol=1e-5)


def test_npy_files_one_several_and_a_folder(tmp_path, dicts):
    for kind, arrays in dicts.items():
        file_formats.write_npy(tmp_path / f"{kind}_10000.npy", arrays)
    several = ",".join(str(tmp_path / f"{kind}_10000.npy") for kind in dicts)
    for source in (several, tmp_path):
        loaded = mtl_jax.load_reference_weights(source)
        jax.tree.map(np.testing.assert_array_equal, loaded[1:], mtl_jax.load_reference_weights(dicts)[1:])
    alone = mtl_jax.load_reference_weights(tmp_path / "weights_10000.npy")
    assert alone.ss is None
    with pytest.raises(CheckpointError, match="ss_weights without the pre-trained weights"):
        mtl_jax.load_reference_weights(tmp_path / "ss_weights_10000.npy")
    file_formats.write_npy(tmp_path / "weights_20000.npy", dicts["weights"])
    with pytest.raises(CheckpointError, match=r"weights_20000\.npy: a second file of weights"):
        mtl_jax.load_reference_weights(tmp_path)


def test_npy_files_of_python_2_are_read(tmp_path, dicts):
    """Protocol 2 with bytes for strings, as TensorFlow 1's users wrote them."""
    import pickle

    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    body = pickle.dumps(np.array(dicts["weights"], dtype=object), protocol=2)
    (tmp_path / "weights.npy").write_bytes(header + text.ljust(117) + b"\n" + body)
    loaded = mtl_jax.load_reference_weights(tmp_path / "weights.npy")
    np.testing.assert_array_equal(loaded.params["block1"]["conv1"]["kernel"], dicts["weights"]["block1_conv1"])


def test_safetensors_hold_all(tmp_path, state, dicts):
    for number, mapping in enumerate(({"params": state}, dicts)):
        weights = mtl_jax.load_reference_weights(mapping)
        path = tmp_path / f"{number}.safetensors"
        reference_weights.export_safetensors(weights, path)
        again = mtl_jax.load_reference_weights(path)
        assert again.backbone == weights.backbone
        jax.tree.map(np.testing.assert_array_equal, again[1:], weights[1:])


def test_scales_that_are_missing_here_are_written_as_ones(state):
    weights = mtl_jax.load_reference_weights({"params": state})
    del weights.ss["stage1"]["block1"]["shortcut"]
    back = to_state_dict(weights)["params"]
    assert (back["encoder.layer1.0.downsample.0.mtl_weight"] == 1).all()


def test_what_a_format_cannot_hold_is_refused(state, dicts):
    weights = mtl_jax.load_reference_weights({"params": state})
    with pytest.raises(CheckpointError, match="resnet12 and resnet18, not resnet25"):
        to_dicts(weights)
    with pytest.raises(CheckpointError, match="missing head/bias; missing head/kernel"):
        to_state_dict(weights._replace(head=None))
    theirs = mtl_jax.load_reference_weights(dicts)
    theirs.params["block1"]["norm1"] = {"scale": np.ones(3)}
    with pytest.raises(CheckpointError, match="surplus params/block1/norm1/scale"):
        to_dicts(theirs)


def test_the_program_tells_and_converts(tmp_path, dicts, capsys):
    for kind, arrays in dicts.items():
        file_formats.write_npy(tmp_path / f"{kind}.npy", arrays)
    out = tmp_path / "all.safetensors"
    assert program.run(reference_weights_main.main, ["", "convert", str(tmp_path), str(out)]) == 0
    text = capsys.readouterr().out
    assert "backbone: resnet12" in text
    assert "batch_stats: none" in text
    assert "head: 5 classes" in text
    assert program.run(reference_weights_main.main, ["", "convert", str(out), str(tmp_path / "again.npy")]) == 0
    back = mtl_jax.load_reference_weights(
        ",".join(str(tmp_path / f"again-{kind}.npy") for kind in dicts)
    )  # fmt: skip
    for name, array in flatten(mtl_jax.load_reference_weights(out).ss).items():
        np.testing.assert_allclose(flatten(back.ss)[name], array, rtol=1e-12, atol=1e-15)
    assert program.run(reference_weights_main.main, ["", "convert", str(out), "out.txt"]) == 2
    assert program.run(reference_weights_main.main, ["", "info", str(tmp_path / "none.pth")]) == 2
    assert "no such file" in capsys.readouterr().err


def weights_config(preset_changes=()):
    """glyphs for a tiny resnet25."""
    config = glyphs.get_config("1shot")
    config.backbone.update({"name": "resnet25", "width": 0.05})
    config.data.channels = 3
    config.inner.head_init = "he"
    config.meta.update({"query": 3, "tasks_per_step": 1, "steps": 1, "val_every": 0, "val_tasks": 0})
    config.evaluate.update({"num_tasks": 4, "query": 3})
    return config


@pytest.fixture
def weight_file(tmp_path, state):
    """A meta-training file as safetensors, which needs no torch."""
    path = tmp_path / "theirs.safetensors"
    reference_weights.export_safetensors(mtl_jax.load_reference_weights({"params": state}), path)
    return str(path)


def test_training_starts_from_the_backbone_of_a_file(weight_file, state):
    params, batch_stats = network.backbone(weights_config(), weight_file)
    kernel = np.float32(state["encoder.conv1.weight"]).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["stem"]["conv"]["kernel"], kernel)
    mean = np.float32(state["encoder.layer3.3.bn2.running_mean"])
    np.testing.assert_array_equal(batch_stats["stage3"]["block4"]["norm2"]["mean"], mean)


def test_a_file_that_does_not_fit_the_config_is_refused(weight_file, dicts, tmp_path):
    config = weights_config()
    config.backbone.width = 0.1
    with pytest.raises(CheckpointError, match=r"stage1/block1/conv1/kernel is float32\[3,3,4,8\]"):
        network.backbone(config, weight_file)
    config.backbone.name = "resnet12"
    with pytest.raises(CheckpointError, match=r"weights of a resnet25, but config\.backbone\.name is 'resnet12'"):
        network.backbone(config, weight_file)
    config = weights_config()
    config.meta.way = 3
    with pytest.raises(CheckpointError, match=r"its head is for 5 classes; give --config\.meta\.way=5"):
        network.model(config, weight_file)
    file_formats.write_npy(tmp_path / "weights.npy", dicts["weights"])
    config.backbone.update({"name": "resnet12", "width": 26 / 512, "norm_scale": False, "norm_bias": False})
    with pytest.raises(ConfigError, match="has no running averages of batch norm"):
        network.backbone(config, str(tmp_path / "weights.npy"))
    with pytest.raises(CheckpointError, match="a pre-training file, without a head"):
        config.meta.batch_norm = "batch"
        network.model(config, str(tmp_path / "weights.npy"))


def test_evaluation_straight_from_a_file(weight_file, tmp_path):
    workdir = tmp_path / "results"
    result = evaluate.evaluate(weights_config(), str(workdir), weights=weight_file)
    written = json.loads((workdir / "evaluation" / "test-5way-1shot.json").read_text())
    assert written["accuracy"] == result["accuracy"]
    assert written["checkpoint_by"] == "weight file theirs.safetensors"
    assert not (workdir / "config.json").exists()


def test_importing_the_library_does_not_import_torch():
    code = "import sys, mtl_jax; mtl_jax.load_reference_weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
