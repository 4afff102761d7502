"""The package as it is built and as a type checker sees it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
from pathlib import Path

import jax
import numpy as np
from mtl_jax.configs import glyphs

import mtl_jax
from mtl_jax import FewShotClassifier

photos = sorted(Path("photos").rglob("*.jpg"))
classifier = FewShotClassifier.from_pretrained().fit(photos, [photo.parent.name for photo in photos])
answers: np.ndarray = classifier.predict(photos)
for answer in classifier.partial_fit(photos, ["new"] * len(photos)).predict_proba(photos):
    print(answer.max())
head = mtl_jax.init_head(jax.random.key(0), 16, 5)
adapted = mtl_jax.adapt_head(head, jax.numpy.ones((5, 16)), jax.numpy.arange(5), steps=2, lr=0.1)
norm: jax.Array = abs(head["kernel"]).max()
print(norm, adapted["bias"], glyphs.get_config("1shot").seed)
head["kernal"]
classifier.predict(photos, error="skip")
"""


def test_a_users_script_passes_a_strict_type_check_but_for_its_two_mistakes(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert '"Head" has no key "kernal"' in errors[0]
    assert 'Unexpected keyword argument "error"' in errors[1]


def _built(kind, source, into):
    into.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (file,) = into.iterdir()
    return file


def test_wheels_and_sdists_hold_the_configs_and_an_editable_install_is_a_path(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for part in ("mtl_jax", "configs"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    with tarfile.open(_built("sdist", source, tmp_path / "sdist")) as sdist:
        sdist.extractall(tmp_path, filter="data")
        (unpacked,) = {tmp_path / name.split("/")[0] for name in sdist.getnames()}
    assert (unpacked / "mtl_jax/configs/__init__.py").read_text() == (ROOT / "mtl_jax/configs/__init__.py").read_text()
    for folder in (source, unpacked):
        with zipfile.ZipFile(_built("wheel", folder, folder / "wheel")) as wheel:
            files = {name for name in wheel.namelist() if name.startswith("mtl_jax/")}
            for path in (ROOT / "configs").glob("*.py"):
                assert wheel.read(f"mtl_jax/configs/{path.name}") == path.read_bytes()
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mtl_jax").rglob("*.py")}
        page = {f"mtl_jax/demo_page/{name}" for name in ("page.html", "style.css", "app.js", "files.js", "tools.js")}
        assert files >= modules | page | {"mtl_jax/py.typed", "mtl_jax/export/fc100-conv4.safetensors"}
        with zipfile.ZipFile(_built("editable", folder, folder / "editable")) as wheel:
            (pth,) = (name for name in wheel.namelist() if name.endswith(".pth"))
            # Type checkers read paths, but do not run the `import` lines of other kinds of editable installs.
            assert wheel.read(pth).decode().strip() == str(folder)
