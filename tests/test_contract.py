"""The names that others build on: exported, typed, documented, with the promised arguments; what the core imports."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from mtl_jax.configs import default

import mtl_jax
from mtl_jax import backbones
from mtl_jax.meta import Inner

PACKAGE = Path(mtl_jax.__file__).parent
REQUIRED = inspect.Parameter.empty
# Parameters in order, with defaults; those after None can be given by keyword alone.
CONTRACT = {
    "create_backbone": {"name": REQUIRED, "options": REQUIRED},
    "init_scale_shift": {"params": REQUIRED, None: "", "scale": "all", "shift": "bias", "blocks": None},
    "apply_scale_shift": {"params": REQUIRED, "ss": REQUIRED},
    "init_head": {"key": REQUIRED, "features": REQUIRED, "way": REQUIRED},
    "adapt_head": {
        "head": REQUIRED, "features": REQUIRED, "labels": REQUIRED,
        None: "", "steps": REQUIRED, "lr": REQUIRED, "first_order": True, "weights": None,
    },
    "adapted_logits": {
        "head": REQUIRED, "support_features": REQUIRED, "support_labels": REQUIRED, "query_features": REQUIRED,
        None: "", "steps": REQUIRED, "lr": REQUIRED, "first_order": True, "weights": None, "trajectory": False,
    },
    "adapt": {
        "loss": REQUIRED, "params": REQUIRED,
        None: "", "steps": REQUIRED, "lr": REQUIRED, "first_order": True, "remat": False,
    },
    "sample_episode": {
        "key": REQUIRED, "table": REQUIRED, None: "", "way": REQUIRED, "shot": REQUIRED, "query": REQUIRED,
    },
    "check_table": {
        "table": REQUIRED, "names": REQUIRED, None: "", "way": REQUIRED, "shot": REQUIRED, "query": REQUIRED,
    },
}  # fmt: skip
CLASSES = ("ClassTable", "Episode", "FewShotClassifier")
SHELL = ("__init__", "__main__", "ablation", "demo")  # every other file directly in the package is the core
CORE = sorted({path.stem for path in PACKAGE.glob("*.py")} - {*SHELL})
CORE_MAY_IMPORT = {
    "jax",
    "flax",
    "optax",
    "numpy",
    "collections",
    "contextlib",
    "contextvars",
    "dataclasses",
    "difflib",
    "functools",
    "inspect",
    "math",
    "typing",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_functions_take_what_was_promised(name):
    function = getattr(mtl_jax, name)
    parameters = inspect.signature(function).parameters
    keyword_only = False
    for wanted, default_value in CONTRACT[name].items():
        if wanted is None:
            keyword_only = True
            continue
        assert parameters[wanted].default == default_value, wanted
        assert (parameters[wanted].kind == inspect.Parameter.KEYWORD_ONLY) == keyword_only, wanted
    surplus = set(parameters) - set(CONTRACT[name])
    assert all(parameters[extra].default is not REQUIRED for extra in surplus)  # later options are optional
    for parameter in parameters.values():
        assert parameter.annotation is not REQUIRED, parameter
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert "Args:" in inspect.getdoc(function)


@pytest.mark.parametrize("name", backbones.NAMES)
def test_backbones_are_called_as_promised(name):
    parameters = inspect.signature(mtl_jax.create_backbone(name)).parameters
    more = [key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    assert list(parameters) == ["images", "train", "batch_statistics", *more]
    assert more == (["dropblock_share"] if name == "resnet12_640" else [])
    assert all(parameters[key].default == 1 for key in more)
    assert (parameters["train"].default, parameters["batch_statistics"].default) == (False, None)


def test_everything_promised_is_exported():
    assert {*CONTRACT, *CLASSES} <= set(mtl_jax.__all__)
    for name in mtl_jax.__all__:
        assert getattr(mtl_jax, name) is not None
        assert name == "__version__" or inspect.getdoc(getattr(mtl_jax, name))
    assert mtl_jax.ClassTable._fields == ("indices", "counts")
    with pytest.raises(AttributeError, match="no attribute 'FewShotClassifer'"):
        _ = mtl_jax.FewShotClassifer


def public_definitions(tree):
    """(name, node) of a module's public functions, classes and methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_are_typed_and_documented(path):
    tree = ast.parse(path.read_text())
    for name, node in public_definitions(tree):
        assert ast.get_docstring(node) or "." in name, f"{name} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        assert node.returns is not None, f"{name} does not say what it returns"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        untyped = [a.arg for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        assert not untyped, f"{name}: {untyped} have no type"


def imported(tree):
    """Full names of all modules that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            is_package = node.module == "mtl_jax"  # from mtl_jax import meta
            yield from (f"mtl_jax.{alias.name}" for alias in node.names) if is_package else [node.module]


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_nothing_of_the_shell(name):
    """It imports itself, the array libraries and a little of the standard library; so no absl, no config, no file."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    allowed = {f"mtl_jax.{module}" for module in CORE}
    for module in imported(tree):
        assert module in allowed or module.split(".")[0] in CORE_MAY_IMPORT, module
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
    assert not called & {"print", "open", "exec", "eval"}


def test_config_groups():
    config = default.get_config()
    groups = {"seed", "data", "backbone", "pretrain", "inner", "meta", "hard_tasks", "evaluate", "runtime"}
    assert set(config.keys()) == groups
    assert {*Inner._fields} - {"head", "way"} < set(config.inner.keys())  # these are base_learner and meta.way


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_programs_have_a_main_and_a_launcher(program):
    module = importlib.import_module(f"mtl_jax.{program}.__main__")
    assert list(inspect.signature(module.main).parameters) == ["argv"]
    launcher = PACKAGE.parent / f"{program}.py"
    assert not launcher.exists() or f"mtl_jax.{program}" in launcher.read_text()
