"""Who may import whom: a folder imports lower storeys only, and each heavy library comes in by one door."""

import ast
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax.__main__ import PROGRAMS

PACKAGE = Path(mtl_jax.__file__).parent
STOREYS = {
    "core": 1, "workdir": 2, "launch": 3, "data": 4, "config": 5, "reference_weights": 6, "frozen_episodes": 6,
    "evaluate": 7, "train": 8, "report": 8, "export": 8, "classify": 9, "ablation": 9, "demo": 9,
    "demo_page": 10,
}  # fmt: skip
CONFIG_READERS = ("__init__", "__main__", "run", "plan", "replay", "seeds")  # of train/
EXPERIMENTS = ("ablation", "demo")
FACE_LINES = 15
FILES = {"": 31, "data/sources": 14}  # at most, besides __init__ and __main__; 11 in any other folder
DOORS = {
    "matplotlib": ("report", "data/lettering/fonts.py", "data/sources/glyphs.py"),
    "orbax": ("workdir", "launch/hosts.py"),
    "h5py": ("data/layouts/torchmeta.py",),
    "absl": ("config", "launch/hosts.py", "ablation.py"),
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Full names of all that a module imports, lazy imports as well: modules and names in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(parts):
    """The storey's name of a module's path within the package: its folder, 'core', or an experiment."""
    if (PACKAGE / parts[0]).is_dir():
        return parts[0]
    return parts[0] if parts[0] in EXPERIMENTS else "core"


def name(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_lower_storeys_only(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts in (("__init__",), ("__main__",)):  # lazy names reach up; the list of programs runs them
        return
    own = unit(parts)
    for full in imported(path):
        first, *rest = full.split(".")
        if first != "mtl_jax" or rest[:1] == ["configs"] or rest[:1] == ["__version__"]:
            continue
        other = unit(rest)
        assert other == own or STOREYS[other] < STOREYS[own], full
        assert "__main__" not in rest, full


def test_every_folder_has_a_storey():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__", "configs"}
    assert folders | {"core", *EXPERIMENTS} == set(STOREYS)


def test_a_program_is_a_folder_or_an_experiment():
    programs = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert programs | set(EXPERIMENTS) == set(PROGRAMS)


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_a_face_only_hands_names_on(path):
    if path.parent == PACKAGE:
        return
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= FACE_LINES
    for node in tree.body[1:]:
        assert isinstance(node, ast.ImportFrom | ast.Assign), ast.unparse(node)


def test_folders_are_small_enough_to_be_seen_whole():
    for folder in {path.parent for path in MODULES}:
        files = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        assert len(files) <= FILES.get(name(folder) if folder != PACKAGE else "", 11), folder


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library):
    for path in MODULES:
        if any(full.split(".")[0] == library for full in imported(path)):
            inside = name(path)
            assert path.name == "__main__.py" or inside.startswith(DOORS[library]), inside


@pytest.mark.parametrize(
    "path", [path for path in sorted(PACKAGE.glob("train/*.py")) if path.stem not in CONFIG_READERS], ids=name
)
def test_a_config_ends_at_its_door(path):
    """Training takes a `Recipe`: only the files named above hold a config, so no other can read its keys."""
    for node in ast.walk(ast.parse(path.read_text())):
        kinds = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"}
        held = getattr(node, kinds.get(type(node), ""), None)
        assert held not in ("config", "settings"), ast.unparse(node)
    assert not any("ConfigDict" in full for full in imported(path))
