import builtins
import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax.errors import MtlError
from mtl_jax.workdir import writers
from mtl_jax.workdir.writers import JsonlWriter, open_tensorboard, read_jsonl


def _write(path, records, close=True):
    writer = JsonlWriter(path)
    for step, scalars in records:
        writer.write(step, scalars)
    if close:
        writer.close()
    return writer


def test_the_bytes_depend_on_the_values_alone(tmp_path):
    _write(tmp_path / "a", [(1, {"loss": jnp.float32(0.1), "accuracy": np.float64(0.1), "n": np.int32(3), "ok": True})])
    _write(tmp_path / "b", [(np.int64(1), {"ok": True, "n": 3, "accuracy": 0.1, "loss": 0.10000000149011612})])
    expected = '{"step": 1, "accuracy": 0.1, "loss": 0.10000000149011612, "n": 3, "ok": true}\n'
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == expected


def test_what_is_not_finite_is_strict_json_and_read_back(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, [(0, {"a": jnp.float32(jnp.nan), "b": np.inf, "c": -math.inf, "d": "text"})])
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (record,) = read_jsonl(path)
    assert math.isnan(record["a"]) and (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, "text")


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_float32_round_trips_exactly(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("w") / "m.jsonl"
    _write(path, [(i, {"x": np.float32(value)}) for i, value in enumerate(values)])
    np.testing.assert_array_equal([record["x"] for record in read_jsonl(path)], values)


def test_a_resumed_run_ends_with_the_bytes_of_one_that_never_stopped(tmp_path):
    records = [(step, {"loss": step / 7}) for step in range(6)]
    _write(tmp_path / "whole", records)
    writer = _write(tmp_path / "killed", records[:3], close=False)
    position = writer.position()  # saved with the checkpoint of step 3
    writer.write(3, {"loss": 99.0})
    writer.close()
    with open(tmp_path / "killed", "ab") as file:
        file.write(b'{"step": 4, "lo')  # a kill in the middle of a line
    resumed = JsonlWriter(tmp_path / "killed")
    resumed.truncate(position)
    for step, scalars in records[3:]:
        resumed.write(step, scalars)
    resumed.close()
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_torn_last_line_is_cut_when_opened_and_left_out_when_read(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    assert list(read_jsonl(path)) == [{"step": 1}]
    _write(path, [(2, {})])
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b"x" * 3_000_000)
    JsonlWriter(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("content", "kept"), [(b'{"step": 1}\n', 12), (b'{"step": 1}\n{"step": 22}\n', 12), (b"", 0)])
def test_a_file_that_was_changed_since_is_cut_at_a_line_with_a_warning(tmp_path, caplog, content, kept):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    writer = JsonlWriter(path)
    writer.truncate(20)
    writer.close()
    assert path.read_bytes() == content[:kept]
    assert f"{path}: has changed since the checkpoint" in caplog.text


def test_every_line_is_in_the_file_before_a_kill(tmp_path):
    code = """
        import os, signal, sys
        from mtl_jax.workdir.writers import JsonlWriter
        writer = JsonlWriter(sys.argv[1])
        for step in range(5):
            writer.write(step, {})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "m.jsonl"
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2, 3, 4]


def test_a_disk_that_takes_no_more_is_the_projects_own_error(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
    try:
        with pytest.raises(MtlError, match=r"m.jsonl: cannot be written: .*free space and start again"):
            for step in range(9):
                writer.write(step, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        writer.close()
    assert [record["step"] for record in read_jsonl(path)] == [0, 1]


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"[" * 100_000 + b"\n", b"\xff\n", b"1" * 2_000_000])
def test_a_file_of_something_else_is_refused_by_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(MtlError, match=r"m.jsonl, line 2: ") as caught:
        list(read_jsonl(path))
    assert len(str(caught.value)) < 300


def test_errors_name_the_path(tmp_path):
    with pytest.raises(MtlError, match=r"none.jsonl: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(MtlError, match=r"cannot be written: .*--workdir"):
        JsonlWriter(tmp_path)
    writer = JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="step"):
        writer.write(1, {"step": 2})
    writer.close()


def _events(directory):
    from tensorboardX.proto.event_pb2 import Event

    # A record: its length in 8 bytes, 4 of checksum, the event, 4 of checksum.
    for path in sorted(directory.rglob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def test_tensorboard_has_scalars_images_hparams_and_the_restart(tmp_path):
    pytest.importorskip("tensorboardX")
    board = open_tensorboard(tmp_path / "meta", purge_step=7)
    board.write(7, {"meta/loss": np.float32(0.5), "note": "text"})
    board.image(7, "episode", np.zeros((4, 5, 3), np.uint8))
    board.hparams({"seed": 1, "backbone": {"name": "conv4", "blocks": (1, 2)}}, {"accuracy": 0.5})
    board.close()
    events = list(_events(tmp_path))
    values = {value.tag: value for event in events for value in event.summary.value}
    assert values["meta/loss"].simple_value == 0.5 and values["accuracy"].simple_value == 0.5
    assert values["episode"].image.width == 5
    assert "note" not in values and "backbone.name" in str(events)
    assert any(event.session_log.status == 1 and event.step == 7 for event in events)


def test_a_run_writes_curves_a_picture_of_a_task_and_its_hyperparameters(tiny_run):  # noqa: F811
    pytest.importorskip("tensorboardX")
    events = list(_events(tiny_run / "tensorboard" / "meta"))
    values = {value.tag: value for event in events for value in event.summary.value}
    curves = {row["step"]: row["meta/loss"] for row in read_jsonl(tiny_run / "metrics.jsonl") if "meta/loss" in row}
    assert values["meta/loss"].simple_value == pytest.approx(curves[4], rel=1e-6)
    assert values["meta/task"].image.height > 5 * 48  # five classes
    assert values["meta/best_val_accuracy"].simple_value > 0.2 and "backbone.width" in str(events)


def test_without_tensorboardx_there_is_one_log_line_and_no_writer(tmp_path, monkeypatch, caplog):
    found = builtins.__import__

    def without(name, *arguments, **options):
        if name == "tensorboardX":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    caplog.set_level("INFO", logger=writers.__name__)
    assert open_tensorboard(tmp_path) is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "mtl_jax[tensorboard]" in caplog.text and os.listdir(tmp_path) == []
