"""`python -m mtl_jax` lists all that can be run; each program's --help has an example whose flags exist."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax import __main__ as listing

PACKAGE = Path(mtl_jax.__file__).parent


def test_the_list_is_of_all_programs_and_each_has_a_line(capsys):
    guarded = {p.stem for p in PACKAGE.glob("*.py") if 'if __name__ == "__main__"' in p.read_text()} - {"__main__"}
    packages = {p.parent.name for p in PACKAGE.glob("*/__main__.py")}
    assert guarded | packages == set(listing.PROGRAMS)
    assert listing.main(["mtl_jax"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(listing.PROGRAMS)
    for program, line in zip(listing.PROGRAMS, lines, strict=True):
        assert re.fullmatch(rf"  python -m mtl_jax\.{program} +\S.{{20,130}}", line)


@pytest.mark.parametrize("program", listing.PROGRAMS)
def test_help_has_an_example_and_every_flag_of_it(program, capsys):
    module = importlib.import_module(f"mtl_jax.{program}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"mtl_jax.{program}.__main__")
    argv = ["--help"] if program == "data" else [program, "--help"]
    with pytest.raises(SystemExit) as done:
        module.main(argv)
    assert not done.value.code
    text = capsys.readouterr().out
    pattern = rf"^ *(python (?:-m mtl_jax\.{program}|{program}\.py) .+)$"
    examples = re.findall(pattern, text, re.MULTILINE)
    assert examples
    explained = re.sub(pattern, "", text, flags=re.MULTILINE)
    for command in examples:
        for flag in re.findall(r"--([\w.]+)", command.partition(" -- ")[0]):  # behind it another program's
            known = flag.startswith("config.") or program == "frozen_episodes" or f"--{flag}" in explained
            assert known, f"{command}: --{flag}"


def test_the_modules_run(tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=tmp_path, check=False)

    found = run("mtl_jax")
    assert found.returncode == 0 and found.stdout.count("\n  python -m mtl_jax.") == len(listing.PROGRAMS)
    found = run("mtl_jax", "classify")
    assert found.returncode == 2 and found.stderr.endswith("write python -m mtl_jax.classify --help\n")
    found = run("mtl_jax.frozen_episodes", "make", "--help")
    assert found.returncode == 0 and "--workdir" in found.stdout and not found.stderr
