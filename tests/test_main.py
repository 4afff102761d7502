"""`mtl-jax` lists all that can be run; each program's --help has an example whose flags exist."""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax import __main__ as listing
from mtl_jax.launch import program

PACKAGE = Path(mtl_jax.__file__).parent


def test_the_list_is_of_all_programs_and_each_has_a_line(capsys):
    guarded = {p.stem for p in PACKAGE.glob("*.py") if 'if __name__ == "__main__"' in p.read_text()} - {"__main__"}
    packages = {p.parent.name for p in PACKAGE.glob("*/__main__.py")}
    assert guarded | packages == set(listing.PROGRAMS)
    assert listing.main(["mtl_jax"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(listing.PROGRAMS)
    for name, line in zip(listing.PROGRAMS, lines, strict=True):
        assert re.fullmatch(rf"  mtl-jax {name} +\S.{{20,130}}", line)


@pytest.mark.parametrize("name", listing.PROGRAMS)
def test_help_has_an_example_and_every_flag_of_it(name, capsys):
    argv = ["--help"] if name == "data" else [name, "--help"]
    with pytest.raises(SystemExit) as done:
        main_of(name)(argv)
    assert not done.value.code
    text = capsys.readouterr().out
    pattern = rf"^ *(python (?:-m mtl_jax\.{name}|{name}\.py) .+)$"
    examples = re.findall(pattern, text, re.MULTILINE)
    assert examples
    explained = re.sub(pattern, "", text, flags=re.MULTILINE)
    for command in examples:
        for flag in re.findall(r"--([\w.]+)", command.partition(" -- ")[0]):  # behind it another program's
            known = flag.startswith("config.") or name == "frozen_episodes" or f"--{flag}" in explained
            assert known, f"{command}: --{flag}"


def test_the_modules_run(tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=tmp_path, check=False)

    found = run("mtl_jax")
    assert found.returncode == 0 and found.stdout.count("\n  mtl-jax ") == len(listing.PROGRAMS)
    for words in (["mtl_jax.frozen_episodes"], ["mtl_jax", "frozen_episodes"]):
        found = run(*words, "make", "--help")
        assert found.returncode == 0 and "--workdir" in found.stdout and not found.stderr


def test_every_word_of_a_program_is_explained(monkeypatch, capsys):
    """Its flags, its positional arguments and its commands."""
    parsers = []
    whole = program.Parser.parse_args
    monkeypatch.setattr(program.Parser, "parse_args", lambda self, *words: parsers.append(self) or whole(self, *words))
    for name in listing.PROGRAMS:
        with pytest.raises(SystemExit):
            main_of(name)([*([] if name == "data" else [name]), "--help"])
    capsys.readouterr()
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
                assert all(choice.help for choice in action._choices_actions)
            else:
                assert action.help, action


def main_of(name):
    module = importlib.import_module(f"mtl_jax.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"mtl_jax.{name}.__main__")
    return module.main
