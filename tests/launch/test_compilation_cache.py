"""The persistent compilation cache: on in the programs, never over what the user has set."""

import jax
import pytest

from mtl_jax.launch import compilation_cache


@pytest.fixture
def settings(monkeypatch):
    """JAX's settings as a program finds them; put back afterwards (the tests run without the cache)."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.delenv(compilation_cache.SWITCH, raising=False)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_on_in_the_users_cache_folder(settings, tmp_path):
    settings.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache.configure()
    assert folder == tmp_path / "mtl_jax" / "compiled" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_the_environment_names_another_folder_or_turns_it_off(settings, tmp_path):
    settings.setenv(compilation_cache.SWITCH, "0")
    assert compilation_cache.configure() is None and jax.config.jax_compilation_cache_dir is None
    settings.setenv(compilation_cache.SWITCH, str(tmp_path / "mine"))
    assert compilation_cache.configure() == tmp_path / "mine"


def test_what_the_user_gave_to_jax_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compilation_cache.configure() is None
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation_cache.configure() is None and jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_costs_time_alone(settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings.setenv(compilation_cache.SWITCH, str(tmp_path / "file" / "below"))
    assert compilation_cache.configure() is None
