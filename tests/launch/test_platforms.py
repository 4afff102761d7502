"""What a platform lacks, and what ends a program from outside: each is one line, or works."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment, interrupts
from mtl_jax.launch.start import PROGRAMS

ROOT = Path(mtl_jax.__file__).parents[1]
WINDOWS_LACKS = "fcntl", "resource", "pwd", "grp", "termios", "array_record", "uvloop"
IMPORT_ALL = f"""
import importlib, os, pkgutil, signal, sys
import mtl_jax
sys.modules.update(dict.fromkeys({WINDOWS_LACKS}))
for owner, names in ((os, ("O_NONBLOCK", "fork", "getuid")), (signal, ("SIGKILL", "SIGHUP", "SIGXFSZ"))):
    for name in names:
        delattr(owner, name)
walked = [module.name for module in pkgutil.walk_packages(mtl_jax.__path__, "mtl_jax.")]
for name in walked:
    importlib.import_module(name)
print(len(walked))
from mtl_jax.data.__main__ import main
sys.exit(main(["tfds", "fc100", sys.argv[1]]))
"""


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_every_module_is_imported_where_windows_lacks_others(tmp_path):
    done = run("-c", IMPORT_ALL, tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert int(done.stdout) > 100
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: TFDS data sets need array_record: pip install")


@pytest.mark.parametrize("asked", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(asked, tmp_path):
    words = "--config=configs/glyphs.py", f"--workdir={tmp_path / 'run'}"
    done = run(ROOT / "train.py", *words, JAX_PLATFORMS=asked)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("WARNING", "INFO"))]
    assert line.startswith(f"error: JAX_PLATFORMS={asked}: JAX finds no such device here")
    assert not (tmp_path / "run").exists()


def test_an_error_is_named_by_the_devices_only_where_there_are_none(monkeypatch):
    with pytest.raises(RuntimeError, match="mine"), environment.naming_missing_devices():
        raise RuntimeError("mine")

    def none():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setattr(environment.jax, "devices", none)
    with pytest.raises(ConfigError, match=r"no such device here \('tpu': no libtpu\); leave JAX_PLATFORMS unset"):
        environment.check_devices()


def test_devices_are_named_with_their_kind():
    gpu = {"device": "gpu", "device_kind": "NVIDIA H100 80GB HBM3", "num_devices": 1}
    assert environment.describe_devices(gpu) == "1 gpu device (NVIDIA H100 80GB HBM3)"
    cpus = {"device": "cpu", "device_kind": "cpu", "num_devices": 4}
    assert environment.describe_devices(cpus) == "4 cpu devices"
    assert environment.device_facts()["device"] == "cpu"


STARTS = [
    *(["-m", f"mtl_jax.{program}"] for program in PROGRAMS),
    ["-m", "mtl_jax"], ["-m", "mtl_jax", "train"], [ROOT / "train.py"], [ROOT / "evaluate.py"],
]  # fmt: skip
BEGUN = """
import os, sys
class Pause:
    def find_spec(self, name, path, target=None):
        if name == os.environ["PAUSE"]:
            print("begun", flush=True)
            import time
            for _ in range(600):  # a signal just before a sleep does not end it
                time.sleep(0.1)
sys.meta_path.insert(0, Pause())
"""


def interrupted(words, pause, folder):
    """Standard error and status of a program that gets Ctrl-C when it is about to import a module."""
    (folder / "sitecustomize.py").write_text(BEGUN)
    child = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "PAUSE": pause},
    )  # fmt: skip
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    return child.communicate(timeout=20)[1], child.returncode


@pytest.mark.parametrize("words", [words for words in STARTS if words != ["-m", "mtl_jax"]], ids=str)
def test_ctrl_c_ends_a_program_in_one_line_while_it_is_being_imported(words, tmp_path):
    err, status = interrupted(words, "jax", tmp_path)
    assert (err, status) == ("\ninterrupted by SIGINT\n", -signal.SIGINT)


def test_ctrl_c_ends_a_program_in_one_line_within_it(tmp_path):
    program = """
import sys
from mtl_jax.launch import program, start
def main(argv):
    try:
        import pause_here
    finally:
        open(sys.argv[1], "w").close()
start.interrupts.end_at_once()
program.run(main)
"""
    err, status = interrupted(["-c", program, str(tmp_path / "left in order")], "pause_here", tmp_path)
    assert (err, status) == ("\ninterrupted by SIGINT\n", -signal.SIGINT)
    assert (tmp_path / "left in order").exists()


def test_ctrl_c_counts_where_its_exception_is_lost(tmp_path):
    program = """
import gc
from mtl_jax.launch import interrupts
class Lost:
    def __del__(self):
        import pause_here
with interrupts.within_program():
    Lost()
    print("went on", flush=True)
"""
    err, status = interrupted(["-c", program], "pause_here", tmp_path)
    assert (err, status) == ("\ninterrupted by SIGINT\n", -signal.SIGINT)


def test_the_library_leaves_ctrl_c_alone():
    done = run("-c", "import signal, mtl_jax, mtl_jax.launch.program; print(signal.getsignal(signal.SIGINT).__name__)")
    assert done.stdout == "default_int_handler\n"


def test_a_signal_has_a_name():
    assert interrupts.name(signal.SIGTERM) == "SIGTERM"
    assert interrupts.name(signal.SIGRTMIN + 1) == f"signal {signal.SIGRTMIN + 1}"


@pytest.mark.parametrize(("words", "near"), [
    (["-m", "mtl_jax.clasify"], r" \(did you mean classify\?\)"), (["-m", "mtl_jax.workdir"], ""),
    (["-m", "mtl_jax", "trian"], r" \(did you mean train\?\)"),
    (["-Bm", "mtl_jax.evalute.x"], r" \(did you mean evaluate\?\)"),
], ids=str)  # fmt: skip
def test_an_unknown_program_gets_the_nearest_known(words, near):
    done = run(*words)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: '\w+' is not a program{near}; there are demo, .*--help\n", done.stderr)


def test_the_list_does_not_wait_for_jax():
    started = time.monotonic()
    done = run("-X", "importtime", "-m", "mtl_jax")
    assert done.returncode == 0 and time.monotonic() - started < 5
    assert not re.search(r"\b(jax|numpy|absl|flax)\n", done.stderr)


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "mtl_jax"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 141)
