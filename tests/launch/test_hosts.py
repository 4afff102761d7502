"""Several processes: the same numbers as one; a signal to one stops all at once; a dead one ends the others."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from mtl_jax.configs import default

from mtl_jax import parallel
from mtl_jax.errors import ConfigError
from mtl_jax.launch import __main__ as launch_main
from mtl_jax.launch import hosts
from mtl_jax.launch.signals import EXIT_GO_ON_LATER, StopRequest
from mtl_jax.workdir.checkpoint import Checkpoints

HERE = Path(__file__).parents[1]
SCRIPT = HERE / "hosts_run.py"


def environment(devices, **more):
    """Of a program with so many virtual devices in each process."""
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **more}


@pytest.fixture
def start():
    """Starts programs; what is left of them, and of what they have started, is killed after the test."""
    with starting() as function:
        yield function


@contextlib.contextmanager
def starting():
    children = []

    def start(*words, devices=1, **more):
        command = [sys.executable, *map(str, words)]
        children.append(subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parent,
            env=environment(devices, **more), start_new_session=True,
        ))  # fmt: skip
        return children[-1]

    try:
        yield start
    finally:
        for child in children:
            for number in descendants(child.pid) if child.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            child.wait()
            child.stdout.close()


def descendants(process):
    """The process and all that it, and they, have started: the launcher gives each of its own a session."""
    found = [process]
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for word in (task / "children").read_text().split():
                found += descendants(int(word))
    return found


def start_each(start, folder, what):
    """Two processes without a launcher."""
    address = f"127.0.0.1:{launch_main.free_port()}"
    shared = SCRIPT, folder, what, f"--coordinator_address={address}", "--num_processes=2"
    return [start(*shared, f"--process_id={number}") for number in range(2)]


def wait_for(condition, child, seconds=240):
    """What `condition` returns once that is true, while the child runs."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert child.poll() is None, child.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return found


def parse(*words):
    values = flags.FlagValues()
    hosts.define_flags(values)
    values(["program", *words])
    return values


@pytest.mark.parametrize("words, message", [
    (["--num_processes=2"], "--coordinator_address is missing"),
    (["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"], "--process_id is 2, expected 0 to 1"),
])  # fmt: skip
def test_half_a_set_of_flags_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        hosts.join(parse(*words), {})


def test_one_process_joins_nobody_and_writes_in_place(tmp_path):
    hosts.join(parse("--coordinator_address=127.0.0.1:1", "--num_processes=1", "--process_id=0"), {})
    hosts.join(parse(), {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})
    assert not hosts.is_joined() and hosts.is_first()
    with hosts.own_folder(tmp_path) as folder, hosts.first_goes_first():
        assert folder == tmp_path
    hosts.check_same("config", {"a": 1})
    request = StopRequest()
    assert hosts.stop_together(request, hosts.devices()) is request


def test_a_step_of_a_cluster_is_known_by_its_tasks():
    assert hosts.is_cluster_step({"SLURM_STEP_NUM_TASKS": "2"})
    assert hosts.is_cluster_step({"OMPI_COMM_WORLD_SIZE": "8"})
    assert not hosts.is_cluster_step({"SLURM_NTASKS": "8"})  # in the batch script itself, not in a step


def test_a_recorded_command_is_that_of_every_process():
    words = ["train.py", "--process_id=1", "--workdir=w", "--coordinator_address=a:1", "--num_processes=2"]
    assert hosts.without_flags(words) == ["train.py", "--workdir=w"]


@pytest.mark.parametrize("total, chunk", [(7, 3), (6, 3), (2, 5)])
def test_chunks_have_one_shape_and_give_every_item_once(total, chunk):
    counts = []

    def run(start, count):
        counts.append(count)
        return np.arange(start, start + count)[:, None] * [1, 10]

    found = parallel.in_chunks(run, total, chunk)
    assert found.tolist() == [[i, 10 * i] for i in range(total)]
    assert len(set(counts)) == 1


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
number = int(sys.argv[-1].partition("=")[2])
open(f"{sys.argv[1]}/{number}", "w").close()
if sys.argv[2] == "dies" and number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "fails" and number == 0:
    sys.exit(2)
time.sleep(0 if sys.argv[2] == "ends" else 60)
"""


@pytest.mark.parametrize("what, status, message", [
    ("ends", 0, ""),
    ("dies", 137, "process 1 of 3 was killed by SIGKILL; the others were stopped (2 by force)"),
    ("fails", 2, "process 0 of 3 ended with status 2; the others were stopped (2 by force)"),
])  # fmt: skip
def test_the_launcher_ends_all_processes_when_one_dies_and_says_so(tmp_path, capfd, what, status, message):
    started = time.monotonic()
    assert launch_main.launch(["-c", CHILD, str(tmp_path), what], 3) == status
    assert time.monotonic() - started < 50
    assert message in capfd.readouterr().err
    if what == "ends":
        assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


def test_the_launcher_passes_a_signal_on_and_waits(tmp_path):
    def interrupt():
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert launch_main.launch(["-c", CHILD, str(tmp_path), "waits"], 3) == EXIT_GO_ON_LATER
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_launcher_marks_what_the_other_processes_say():
    with subprocess.Popen(["printf", "one\\ntwo\\n"], stdout=subprocess.PIPE) as child:
        said = io.StringIO()
        launch_main.relay(1, child.stdout, said)
    assert said.getvalue() == "[1] one\n[1] two\n"


def test_the_launcher_needs_a_command(capfd):
    with pytest.raises(ConfigError, match="nothing to run"):
        launch_main.main(["launch", "--num_processes=2"])


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, start):
    children = start_each(start, tmp_path, "loop")
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2, children[0])
    children[1].send_signal(signal.SIGTERM)
    outs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [EXIT_GO_ON_LATER] * 2, outs
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first["taken"] == second["taken"] > 5
    assert (first["signal"], second["signal"]) == (None, signal.SIGTERM)


@pytest.mark.slow
def test_the_tasks_of_a_step_of_slurm_find_each_other(tmp_path, start):
    job = {"SLURM_JOB_ID": str(launch_main.free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    children = [start(SCRIPT, tmp_path, "loop", SLURM_PROCID=n, SLURM_LOCALID=n, **job) for n in "01"]
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2, children[0])
    children[0].send_signal(signal.SIGTERM)
    outs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [EXIT_GO_ON_LATER] * 2, outs


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_without_a_launcher_too_a_dead_process_ends_the_other_within_a_minute(tmp_path, start, dead):
    children = start_each(start, tmp_path, "loop")
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2, children[0])
    children[dead].kill()
    died = time.monotonic()
    children[1 - dead].communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert children[1 - dead].returncode not in (0, EXIT_GO_ON_LATER)
    children[dead].communicate()


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What hosts_run computes on one device, on four of one process, and on two of each of two processes."""
    found = {}
    with starting() as start:
        for name, processes, devices in (("1x1", 1, 1), ("1x4", 1, 4), ("2x2", 2, 2)):
            folder = tmp_path_factory.mktemp(name)
            words = "-m", "mtl_jax.launch", f"--num_processes={processes}", "--", SCRIPT, folder, "all"
            found[name] = folder, start(*words, devices=devices, JAX_ENABLE_X64="1")
        for name, (folder, child) in found.items():
            out = child.communicate(timeout=300)[0]
            assert child.returncode == 0, out[-3000:]
            found[name] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert [len(parts) for parts in found.values()] == [1, 1, 2]
    return found


def assert_same(one, other, where=""):
    """Two trees of numbers and texts, numbers to 1e-9."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name], f"{where}/{name}")
    elif isinstance(one, list) and one and not isinstance(one[0], str | list):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9, err_msg=where)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, where)
    else:
        assert one == other, where


@pytest.mark.slow
def test_two_processes_compute_what_one_does_and_what_one_device_does(computed):
    """Training from device data, pre-training, hard tasks from the host, evaluation in each of its ways."""
    one = computed["1x1"][0]
    tasks = [found["meta"].pop("tasks") for name in ("1x1", "1x4") for found in computed[name]]
    parts = [found["meta"].pop("tasks") for found in computed["2x2"]]
    assert tasks[0] == tasks[1] == [[*a, *b] for a, b in zip(*parts, strict=True)]
    assert len(one["hard, host"]["mined"]) == 2 and np.shape(one["evaluate"]["batch"])[0] == 7
    for name in ("1x4", "2x2"):
        for found in computed[name]:
            assert_same(one, found, name)


CONFIG = {
    "data.name": "folder", "backbone.width": 0.05, "pretrain.steps": 4, "pretrain.batch_size": 8,
    "pretrain.val_tasks": 0, "inner.steps": 2, "meta.way": 3, "meta.query": 2, "meta.steps": 600,
    "meta.val_every": 300, "meta.val_tasks": 50, "runtime.log_every": 50, "runtime.checkpoint_every": 50,
}  # fmt: skip
LAUNCH = "-m", "mtl_jax.launch", "--num_processes=2", "--"


@pytest.fixture
def program(tmp_path, start):
    """Starts train.py or evaluate.py on noise; what one start has compiled the next ones find."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, classes in (("train", 6), ("val", 3), ("test", 3)):
        images = rng.integers(0, 256, (classes * 8, 16, 16, 1), np.uint8)
        np.savez(tmp_path / f"data/{split}.npz", images=images, labels=np.repeat(np.arange(classes), 8))
    caches = {
        "MTL_JAX_CACHE": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip

    def run(name, *words, launcher=(), devices=1):
        return start(*launcher, f"{name}.py", f"--workdir={tmp_path / 'run'}", *words, devices=devices, **caches)

    return run


def process_of(number, launcher):
    for child in descendants(launcher):
        if f"--process_id={number}" in Path(f"/proc/{child}/cmdline").read_text():
            return child
    raise AssertionError(f"no process {number}")


def steps_of(workdir):
    return Checkpoints(workdir / "meta").steps()


@pytest.mark.slow
def test_a_run_survives_a_killed_process_a_signal_to_one_and_another_number_of_devices(tmp_path, program):
    workdir = tmp_path / "run"
    words = f"--config.data.path={tmp_path / 'data'}", *(f"--config.{key}={value}" for key, value in CONFIG.items())
    train = functools.partial(program, "train", f"--config={default.__file__}", *words)
    child = train(launcher=LAUNCH, devices=2)
    wait_for(lambda: steps_of(workdir), child)
    os.kill(process_of(1, child.pid), signal.SIGKILL)
    killed = time.monotonic()
    out = child.communicate(timeout=60)[0]
    assert time.monotonic() - killed < 60
    assert child.returncode == 137 and "process 1 of 2 was killed by SIGKILL" in out
    before = steps_of(workdir)[-1]

    child = train(launcher=LAUNCH, devices=2)
    wait_for(lambda: steps_of(workdir)[-1] > before, child)
    os.kill(process_of(1, child.pid), signal.SIGTERM)
    out = child.communicate(timeout=60)[0]
    assert child.returncode == EXIT_GO_ON_LATER, out[-3000:]
    assert f"meta resumes from step {before}" in out and out.count("stopped and saved") == 2
    stopped = steps_of(workdir)[-1]
    assert before < stopped < 600

    child = train()  # one process, one device
    out = child.communicate(timeout=240)[0]
    assert child.returncode == 0 and f"meta resumes from step {stopped}" in out, out[-3000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "meta/loss" in line] == list(range(50, 601, 50))  # by one process, once
    assert [line["step"] for line in lines if "meta/val_accuracy" in line] == [300, 600]

    results = []
    for launcher, devices in ((LAUNCH, 2), ((), 1)):
        child = program("evaluate", "--num_tasks=50", "--config.evaluate.query=5", launcher=launcher, devices=devices)
        out = child.communicate(timeout=240)[0]
        assert child.returncode == 0 and out.count("test 3-way 1-shot: ") == 1, out[-3000:]
        results.append(np.loadtxt(workdir / "evaluation/test-3way-1shot.csv", delimiter=",", skiprows=1)[:, 1])
    # In float32 a query on the edge may fall to the other side.
    assert np.abs(results[0] - results[1]).max() < 0.1 and (results[0] != results[1]).sum() < 5
