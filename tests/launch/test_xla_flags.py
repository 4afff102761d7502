"""Options of XLA are added to what the user has set, and only for versions on which they have been tried."""

import os
import subprocess
import sys

import pytest

from mtl_jax.launch import xla_flags


@pytest.mark.parametrize("add", [xla_flags.configure, xla_flags.make_deterministic])
def test_what_the_user_has_set_stays_and_is_added_to_once(add, monkeypatch):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: xla_flags.TESTED_JAXLIBS[0])
    environment = {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}
    assert add(environment)
    assert environment["XLA_FLAGS"].startswith("--xla_dump_to=/tmp/x --xla_")
    before = dict(environment)
    assert not add(environment)
    assert environment == before


@pytest.mark.parametrize("add", [xla_flags.configure, xla_flags.make_deterministic])
def test_an_untried_version_is_left_alone(add, monkeypatch):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: "99.0")
    environment = {}
    assert not add(environment)
    assert not environment


def test_who_asks_for_determinism_in_vain_is_told(monkeypatch, capsys):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: "99.0")
    assert not xla_flags.make_deterministic({})
    assert "does nothing with 99.0; set XLA_FLAGS=--xla_gpu_deterministic_ops=true yourself" in capsys.readouterr().err
    xla_flags.make_deterministic({"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"})
    assert not capsys.readouterr().err


def test_who_trains_on_a_cpu_with_an_untried_version_is_told(monkeypatch):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: "99.0")
    told = xla_flags.cpu_warning({})
    assert "and this is 99.0" in told
    option = told.partition("add ")[2].split()[0]
    assert xla_flags.cpu_warning({"XLA_FLAGS": option}) is None
    assert xla_flags.cpu_warning({xla_flags.SWITCH: "0"}) is None


@pytest.mark.parametrize("version", xla_flags.TESTED_JAXLIBS)
def test_a_program_that_does_not_configure_is_told(version, monkeypatch):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: version)
    environment = {}
    assert "call mtl_jax.xla_flags.configure()" in xla_flags.cpu_warning(environment)
    assert xla_flags.configure(environment)
    assert xla_flags.cpu_warning(environment) is None


@pytest.mark.parametrize("version", ["0.7.2", "0.9.0.1"])
def test_versions_that_need_no_option_have_nothing_to_tell(version, monkeypatch):
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: version)
    assert xla_flags.cpu_warning({}) is None


def test_this_jaxlib_knows_them():
    environment = dict(os.environ)
    environment.pop("XLA_FLAGS", None)
    xla_flags.configure(environment)
    xla_flags.make_deterministic(environment)
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
