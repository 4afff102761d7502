"""What a newcomer meets first: README, its pictures, the address, the notebooks, and the site of the pages."""

import configparser
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import mtl_jax

ROOT = Path(__file__).parents[1]


def _script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NOTEBOOKS = _script(ROOT / "examples/notebooks.py")
PICTURES = _script(ROOT / "docs/images/draw.py")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", PICTURES.files())
def test_pictures_are_what_the_script_draws(name):
    assert (PICTURES.FOLDER / name).read_text(encoding="utf-8") == PICTURES.files()[name], "python docs/images/draw.py"


@pytest.mark.parametrize("script", NOTEBOOKS.scripts(), ids=lambda path: path.stem)
def test_notebooks_are_what_the_scripts_say(script):
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == NOTEBOOKS.notebook(script), "python examples/notebooks.py"
    cells = json.loads(text)["cells"]
    assert "".join(cells[0]["source"]) == f"%pip install -q git+{NOTEBOOKS.address()}"
    code = ["".join(cell["source"]) for cell in cells[1:] if cell["cell_type"] == "code"]
    compile("\n".join(code), str(script), "exec")
    assert len(code) >= 4 and cells[1]["cell_type"] == "markdown"


def test_notebooks_are_valid():
    nbformat = pytest.importorskip("nbformat")
    for script in NOTEBOOKS.scripts():
        nbformat.validate(nbformat.read(script.with_suffix(".ipynb"), as_version=4))


def test_the_address_is_the_same_everywhere():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    address = setup["metadata"]["url"]
    places = (
        "README.md",
        "CITATION.cff",
        "docs/install.md",
        *(f"examples/{p.stem}.ipynb" for p in NOTEBOOKS.scripts()),
    )
    for place in places:
        text = (ROOT / place).read_text(encoding="utf-8")
        assert set(re.findall(r"https://github\.com/[\w.-]+/mtl_jax", text)) == {address}, place


def test_the_version_is_in_one_place():
    places = ("setup.py", "setup.cfg", "pyproject.toml", "CITATION.cff", "README.md", "docs/conf.py", "docs/install.md")
    for place in places:
        assert mtl_jax.__version__ not in (ROOT / place).read_text(encoding="utf-8"), place


class _Page(HTMLParser):
    """The anchors of a page, and where its links and pictures lead."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif (tag, name) in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
                self.targets.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make site` does: a warning is an error."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.docs
def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        for target in page.targets:
            file, _, anchor = unquote(target).partition("#")
            if re.match(r"\w+:", file):
                continue
            place = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert place.exists(), f"{path.relative_to(site)}: {target}"
            if anchor and place.suffix == ".html" and "_modules" not in place.parts:
                assert anchor in pages[place].anchors, f"{path.relative_to(site)}: {target}"


@pytest.mark.docs
def test_the_site_needs_no_network(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path.relative_to(site)


@pytest.mark.docs
def test_the_reference_has_every_public_name(site):
    text = (site / "api/index.html").read_text(encoding="utf-8")
    for name in mtl_jax.__all__:
        assert name.startswith("__") or f'id="mtl_jax.{name}"' in text, name
