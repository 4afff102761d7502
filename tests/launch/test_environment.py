"""Options of XLA, malloc and the compilation cache: the programs set them, never over what the user has set."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from mtl_jax.launch import environment

GLIBC = platform.libc_ver()[0] == "glibc"
# Takes and frees 40 MB again and again, and prints how many pages the last ten rounds had the system map.
PROGRAM = """
import resource
import numpy as np
from mtl_jax.launch import environment
print(environment.keep_freed_memory())
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("add", [environment.configure_xla, environment.make_deterministic])
def test_what_the_user_has_set_stays_and_is_added_to_once(add, monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: environment.TESTED_JAXLIBS[0])
    variables = {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}
    assert add(variables)
    assert variables["XLA_FLAGS"].startswith("--xla_dump_to=/tmp/x --xla_")
    before = dict(variables)
    assert not add(variables)
    assert variables == before


@pytest.mark.parametrize("add", [environment.configure_xla, environment.make_deterministic])
def test_an_untried_version_is_left_alone(add, monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "99.0")
    variables = {}
    assert not add(variables)
    assert not variables


def test_who_asks_for_determinism_in_vain_is_told(monkeypatch, capsys):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "99.0")
    assert not environment.make_deterministic({})
    assert "has no effect with 99.0; set XLA_FLAGS=--xla_gpu_deterministic_ops=true yourself" in capsys.readouterr().err
    environment.make_deterministic({"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"})
    assert not capsys.readouterr().err


def test_who_trains_on_a_cpu_with_an_untried_version_is_told(monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "99.0")
    told = environment.cpu_warning({})
    assert "and this is 99.0" in told
    option = told.partition("add ")[2].split()[0]
    assert environment.cpu_warning({"XLA_FLAGS": option}) is None
    assert environment.cpu_warning({environment.XLA_SWITCH: "0"}) is None


@pytest.mark.parametrize("version", environment.TESTED_JAXLIBS)
def test_a_program_that_does_not_configure_is_told(version, monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: version)
    variables = {}
    assert "call mtl_jax.launch.environment.configure_xla()" in environment.cpu_warning(variables)
    assert environment.configure_xla(variables)
    assert environment.cpu_warning(variables) is None


@pytest.mark.parametrize("version", ["0.7.2", "0.9.0.1"])
def test_versions_that_need_no_option_have_nothing_to_tell(version, monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: version)
    assert environment.cpu_warning({}) is None


def test_this_jaxlib_knows_the_options():
    variables = dict(os.environ)
    variables.pop("XLA_FLAGS", None)
    environment.configure_xla(variables)
    environment.make_deterministic(variables)
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]


def faults(**variables):
    """What the program prints: whether memory is kept, and its page faults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", environment.MALLOC_SWITCH))}
    options = {"env": {**kept, **variables}, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", PROGRAM], **options)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not GLIBC, reason="for glibc alone")
def test_freed_memory_is_taken_again_without_asking_the_system():
    kept, count = faults()
    assert kept and count < 100
    kept, count = faults(MTL_JAX_MALLOC="0")
    assert not kept and count > 10 * 5_000_000 * 8 / 2**21  # at the least one a huge page


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_for_malloc_stays(name):
    assert not environment.keep_freed_memory({name: "1"})


@pytest.fixture
def settings(monkeypatch):
    """JAX's settings as a program finds them; put back afterwards (the tests run without the cache)."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.delenv(environment.CACHE_SWITCH, raising=False)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_is_on_in_the_users_cache_folder(settings, tmp_path):
    settings.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = environment.configure_compilation_cache()
    assert folder == tmp_path / "mtl_jax" / "compiled" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_the_environment_names_another_cache_folder_or_turns_it_off(settings, tmp_path):
    settings.setenv(environment.CACHE_SWITCH, "0")
    assert environment.configure_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None
    settings.setenv(environment.CACHE_SWITCH, str(tmp_path / "mine"))
    assert environment.configure_compilation_cache() == tmp_path / "mine"


def test_a_cache_folder_that_the_user_gave_to_jax_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert environment.configure_compilation_cache() is None
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert environment.configure_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None


def test_a_cache_folder_that_cannot_be_made_costs_time_alone(settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings.setenv(environment.CACHE_SWITCH, str(tmp_path / "file" / "below"))
    assert environment.configure_compilation_cache() is None
