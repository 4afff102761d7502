import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoint_fuzz import fuzz, sample_items

from mtl_jax.config import compare
from mtl_jax.errors import CheckpointError
from mtl_jax.workdir import manifest as manifests
from mtl_jax.workdir.checkpoint import Checkpoints


class State(NamedTuple):
    """A state as a run has it."""

    params: dict
    optimizer: optax.OptState
    step: jax.Array


def _state(seed=0):
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4)), "bias": jnp.zeros(4)}}
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    return State(optax.apply_updates(params, updates), state, jnp.int32(seed))


def _save(directory, *steps, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, sample_items(np.random.default_rng(step)), {"config": {"seed": step}})
    return checkpoints


def _damage(checkpoints, step, item="params"):
    files = [path for path in (checkpoints.directory / str(step) / item).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def _said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("mtl_jax")]


def _assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
    assert jax.tree.structure(tree) == jax.tree.structure(expected)


def test_a_state_comes_back_in_its_own_structure(tmp_path):
    state, checkpoints = _state(3), Checkpoints(tmp_path)
    checkpoints.save(3, {"params": state.params, "state": state}, {"config": {"way": 5}, "best": -np.inf})
    like = jax.eval_shape(_state)
    step, items, metadata = checkpoints.restore({"state": like})
    assert (step, metadata, list(items)) == (3, {"config": {"way": 5}, "best": -np.inf}, ["state"])
    _assert_same(items["state"], state)
    plain = checkpoints.read().items["state"]
    np.testing.assert_array_equal(plain["optimizer"]["1"]["0"]["mu"]["conv"]["bias"], np.zeros(4))


def test_every_dtype_shape_and_bit_comes_back(tmp_path):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 1], np.uint32)  # NaN payloads, -0.0, a denormal
    dtypes = ["bool", "int8", "int32", "int64", "uint8", "uint32", "float16", "bfloat16", "float32", "float64"]
    tree = {name: np.arange(6).reshape(2, 3).astype(name) for name in dtypes}
    tree |= {f"scalar_{name}": np.asarray(1).astype(name) for name in dtypes}
    tree |= {"bits": bits.view(np.float32), "zeros": np.full(3, -0.0), "big": np.array(2**63 - 1)}
    tree |= {
        "empty": np.zeros((0, 3), ml_dtypes.bfloat16),
        "view": np.arange(12.0).reshape(3, 4).T[::2],
        "jax": jnp.ones(2),
    }
    tree |= {"flag": True, "count": 3, "rate": 0.1, "numpy": np.float32(0.1), "nothing": {}, "none": None}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, {"all": tree}, {})
    found = checkpoints.restore({"all": tree}).items["all"]
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for name in tree.keys() - {"nothing", "none"}:
        before, after = np.asarray(tree[name]), np.asarray(found[name])
        assert (after.dtype, after.shape, after.tobytes()) == (before.dtype, before.shape, before.tobytes()), name
    assert found["flag"] is True and type(found["count"]) is int and type(found["rate"]) is float


def test_items_without_arrays_are_saved_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"batch_stats": {}, "empty": {"a": np.zeros((2, 0))}}, {"phase": "done"})
    _, items, metadata = checkpoints.restore({"batch_stats": {}, "empty": {"a": np.zeros((2, 0))}})
    assert items["batch_stats"] == {} and items["empty"]["a"].shape == (2, 0) and metadata == {"phase": "done"}


def test_orbax_alone_reads_an_item(tmp_path):
    checkpoints = _save(tmp_path, 5)
    with ocp.StandardCheckpointer() as orbax:
        params = orbax.restore(checkpoints.directory / "5" / "params")
    _assert_same(params, checkpoints.read(5).items["params"])


@pytest.mark.parametrize("name", ["a.b", "a/b", ""])
def test_names_that_orbax_would_mix_up_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        Checkpoints(tmp_path).save(0, {"params": {name: np.ones(1)}}, {})


def test_what_cannot_be_saved_is_the_callers_error_and_leaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "meta")
    with pytest.raises(ValueError, match="bare array"):
        checkpoints.save(0, {"params": np.ones(1)}, {})
    with pytest.raises(TypeError, match="a/b is str"):
        checkpoints.save(0, {"params": {"a": {"b": "text"}}}, {})
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save(0, {"params": {"a": 1}}, {"config": object()})
    with pytest.raises(ValueError, match="identifier"):
        checkpoints.save(0, {"../params": {"a": 1}}, {})
    with pytest.raises(TypeError):
        checkpoints.save(0, {"params": {"key": jax.random.key(0)}}, {})
    assert not list(tmp_path.rglob("*"))


def test_a_difference_from_what_is_wanted_is_listed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"head": {"kernel": np.ones((4, 5)), "old": np.ones(1)}}}, {})
    like = {"head": {"kernel": np.ones((4, 10)), "bias": np.ones(5)}}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore({"params": like})
    assert str(caught.value) == (
        f"{tmp_path}/1/params does not fit this run: head/kernel is float64[4,5] in the checkpoint, float64[4,10] "
        "expected; missing head/bias; surplus head/old"
    )
    with pytest.raises(CheckpointError, match=r"float64.* in the checkpoint, float32"):
        checkpoints.restore({"params": {"head": {"kernel": np.ones((4, 5), np.float32), "old": np.ones(1)}}})
    with pytest.raises(CheckpointError, match="1: has no item state; it has params"):
        checkpoints.restore({"state": {}})
    with pytest.raises(CheckpointError, match=r"missing x0; .*; and 32 more$"):
        checkpoints.restore({"params": {f"x{i}": 1 for i in range(38)}})


def test_configs_are_compared_by_dotted_name():
    saved = {
        "seed": 1,
        "backbone": {"name": "conv4", "width": 1.0},
        "data": {"size": [32, 32]},
        "evaluate": {"seed": 1},
    }
    config = {"seed": 1, "backbone": {"name": "resnet12", "width": 1}, "data": {"size": (32, 32)}, "inner": {"lr": 0.1}}
    assert compare(saved, config) == [
        "backbone.name: conv4 in the checkpoint, resnet12 now",
        "backbone.width: 1.0 in the checkpoint, 1 now",
        "evaluate.seed: 1 in the checkpoint, absent now",
        "inner.lr: absent in the checkpoint, 0.1 now",
    ]
    assert compare(saved, config, ignore=["backbone", "evaluate.seed", "inn"]) == [
        "inner.lr: absent in the checkpoint, 0.1 now"
    ]
    assert compare(json.loads(json.dumps(config)), config) == []


def test_the_newest_are_kept_and_the_best_always(tmp_path):
    checkpoints = _save(tmp_path, 1, 2)
    assert checkpoints.best() is None
    checkpoints.mark_best(2, 0.5, ci95=np.float32(0.25))
    for step in (3, 4, 5):
        _save(tmp_path, step)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == {"step": 2, "score": 0.5, "ci95": 0.25}
    checkpoints.mark_best(5, 0.75)
    _save(tmp_path, 6, keep=1)
    assert checkpoints.steps() == [5, 6]
    with pytest.raises(ValueError, match="must be saved"):
        checkpoints.mark_best(7, 1.0)


def test_a_damaged_best_is_named_and_nothing_is_deleted(tmp_path, caplog):
    checkpoints = _save(tmp_path, 1, 2)
    checkpoints.mark_best(1, 0.5)
    (tmp_path / "best.json").write_bytes((tmp_path / "best.json").read_bytes().replace(b'"step":1', b'"step":2'))
    with pytest.raises(CheckpointError, match=r"best.json: damaged: its digest.*; delete it"):
        checkpoints.best()
    _save(tmp_path, 3, 4)
    assert checkpoints.steps() == [1, 2, 3, 4] and "no checkpoint is deleted" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"digest": 1}', b"[" * 100_000, b"\xff", b" " * 2_000_000])
def test_a_best_that_is_something_else_is_refused(tmp_path, content):
    (tmp_path / "best.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best.json: damaged"):
        Checkpoints(tmp_path).best()


def test_a_damaged_checkpoint_is_named_passed_over_and_replaced(tmp_path, caplog):
    checkpoints = _save(tmp_path, 1, 2, 3)
    path = _damage(checkpoints, 3)
    with pytest.raises(CheckpointError, match=rf"{path}: damaged checkpoint: its content has changed"):
        checkpoints.read(3)
    assert _said(caplog) == []
    assert checkpoints.read().step == 2
    (line,) = _said(caplog)
    assert line.startswith(f"{path}: damaged checkpoint") and line.endswith("; going back to an older checkpoint")
    _save(tmp_path, 3)
    assert checkpoints.read().step == 3 and checkpoints.steps() == [2, 3]


def test_going_back_leaves_no_later_checkpoint_to_be_taken_for_the_newest(tmp_path):
    checkpoints = _save(tmp_path, 1, 8, 9)
    checkpoints.mark_best(9, 0.5)
    for step in (8, 9):
        _damage(checkpoints, step)
    _save(tmp_path, 2)
    assert checkpoints.steps() == [2, 9]  # the best one is another's to judge
    assert checkpoints.read().step == 2


def test_where_none_is_whole_the_run_does_not_begin_anew_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "meta")
    assert checkpoints.steps() == []
    with pytest.raises(CheckpointError, match=r"meta: no checkpoint there; give the workdir"):
        checkpoints.read()
    _damage(_save(tmp_path / "meta", 1), 1)
    with pytest.raises(CheckpointError, match=r"meta: every checkpoint is damaged .*delete the folder"):
        checkpoints.read()
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; there are: 1"):
        checkpoints.read(4)


def test_no_random_damage_is_accepted(tmp_path):
    assert fuzz(tmp_path, 40, seed=1) == {"tried": 40, "refused": 40, "accepted": 0}


def test_a_renamed_checkpoint_is_not_that_of_another_step(tmp_path):
    checkpoints = _save(tmp_path, 1)
    (tmp_path / "1").rename(tmp_path / "2")
    with pytest.raises(CheckpointError, match="2: damaged checkpoint: it belongs to step 1"):
        checkpoints.read(2)


def test_arrays_are_compared_even_where_every_file_is_whole(tmp_path):
    checkpoints = _save(tmp_path, 1, 2)
    one, other = manifests.read(tmp_path / "1"), manifests.read(tmp_path / "2")
    shutil.rmtree(tmp_path / "1")
    shutil.copytree(tmp_path / "2", tmp_path / "1")
    mixed = one._replace(files=other.files)
    (tmp_path / "1" / manifests.FILE).write_bytes(manifests.to_bytes(mixed))
    with pytest.raises(CheckpointError, match=r"1/params: damaged checkpoint: array block0/kernel is not what was"):
        checkpoints.read(1)
    kernel = one.arrays["params"]["block0/kernel"]._replace(shape=(3, 3, 4, 9))
    mixed.arrays["params"]["block0/kernel"] = kernel
    (tmp_path / "1" / manifests.FILE).write_bytes(manifests.to_bytes(mixed))
    with pytest.raises(
        CheckpointError, match=r"array block0/kernel has shape \(3, 3, 4, 8\), \(3, 3, 4, 9\) was saved"
    ):
        checkpoints.read(1)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"step": float("inf")},
        {"arrays": []},
        {"arrays": {"params": {"x": ["float32", [1 << 40], ""]}}},
        {"arrays": {"params": {"x": ["object", [0], ""]}}},
        {"arrays": {"params": {"x": ["float32", [-1, 0], ""]}}},
        {"arrays": {"params": {"x": ["float32", [0] * 100, ""]}}},
        {"arrays": {"params": {"x": ["f4,O", [0], ""]}}},
        {"arrays": {"params": {"x": ["float32", [0]]}}},
        {"arrays": {"state": {"x": ["float32", [1], ""]}}},
        {"arrays": {"other": {"x": ["float32", [1], ""]}}},
        {"files": {"missing": [1, ""]}},
        {"files": {"params": [1, ""]}},
        {"files": {"a\0b": [1, ""]}},
        {"files": {"../best.json": [1, ""]}},
        {"files": {"/etc/hostname": [1, ""]}},
        {"arrays": {"../1/params": {"x": ["float32", [1], ""]}}},
        {"files": 3},
        {"metadata": 3},
    ],
)
def test_a_manifest_that_was_made_to_mislead_is_refused(tmp_path, change):
    checkpoints = _save(tmp_path, 1)
    path = tmp_path / "1" / manifests.FILE
    path.write_bytes(manifests.seal({**manifests.unseal(path.read_bytes()), **change}))
    with pytest.raises(CheckpointError, match=r"/1"):
        checkpoints.read(1)


def test_what_a_killed_save_leaves_is_removed_and_what_it_replaced_comes_back(tmp_path):
    checkpoints = _save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "3.tmp")
    shutil.copytree(tmp_path / "2", tmp_path / "4.tmp.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "1", tmp_path / "1.old")
    (tmp_path / "2").rename(tmp_path / "2.old")
    (tmp_path / "notes").mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.remove_unfinished()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "notes"]
    assert checkpoints.read().step == 2


SAVE_FOR_EVER = """
    import sys
    import numpy as np
    from mtl_jax.workdir.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.remove_unfinished()
    first = (checkpoints.steps() or [0])[-1]
    for step in range(first + 1, first + 1000):
        checkpoints.save(step, {"params": {f"a{i}": np.full(2000, step) for i in range(20)}}, {"step": step})
        checkpoints.mark_best(step, step)
        print(step, flush=True)
"""


def test_a_kill_while_saving_loses_nothing_that_was_saved(tmp_path):
    rng, checkpoints, last = np.random.default_rng(0), Checkpoints(tmp_path), 0
    for _ in range(2):
        with _python(SAVE_FOR_EVER, tmp_path) as child:
            saved = int(child.stdout.readline())
            assert saved == last + 1
            time.sleep(rng.uniform(0.05, 0.2))
            child.send_signal(signal.SIGKILL)
            saved = [saved, *map(int, child.stdout.read().split())][-1]
        checkpoints.remove_unfinished()
        last = checkpoints.read().step
        assert last in (saved, saved + 1)
        assert all(checkpoints.read(step).metadata == {"step": step} for step in checkpoints.steps())
        assert checkpoints.best()["step"] in checkpoints.steps()


FILL_THE_DISK = """
    import subprocess, sys
    import numpy as np
    from mtl_jax.workdir.checkpoint import Checkpoints, CheckpointError
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", sys.argv[1]]).returncode:
        sys.exit(77)
    checkpoints = Checkpoints(sys.argv[1] + "/meta")
    small, large = {"params": {"a": np.arange(1000)}}, {"params": {"a": np.random.default_rng(0).random(300_000)}}
    checkpoints.save(1, small, {})
    try:
        checkpoints.save(2, large, {})
    except CheckpointError as error:
        print(error)
    print(checkpoints.read().step, [path.name for path in checkpoints.directory.iterdir()])
    checkpoints.save(3, small, {})
    print(checkpoints.steps())
"""


def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_what_to_do(tmp_path):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    with _python(FILL_THE_DISK, tmp_path, before=("unshare", "-rm")) as child:
        lines = child.stdout.read().splitlines()
    if child.returncode == 77:
        pytest.skip("a small file system cannot be mounted here")
    message, read, steps = lines
    assert f"{tmp_path}/meta/2: checkpoint not saved: no space left (" in message
    assert "Earlier checkpoints are intact (1): free space there and rerun the command" in message
    assert (read, steps) == ("1 ['1']", "[1, 3]")


def test_a_file_size_limit_is_a_full_disk_too(tmp_path):
    checkpoints = _save(tmp_path, 1)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"2: checkpoint not saved: no space left.*intact \(1\)"):
            checkpoints.save(2, {"params": {"a": np.random.default_rng(0).random(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["1"] and checkpoints.read().step == 1


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/meta/1: checkpoint not saved: .*Not a directory.*\(none\)"):
        _save(tmp_path / "file" / "meta", 1)


def _python(code, *arguments, before=()):
    command = [*before, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
