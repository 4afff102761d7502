"""Presets are what docs/fidelity.md says they are, option by option, and its proofs exist."""

import ast
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from mtl_jax.configs import fc100, miniimagenet

from mtl_jax import config, create_backbone
from mtl_jax.config import build, presets
from mtl_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
VARIANTS = ("paper", "tensorflow", "pytorch", "default")
SHOTS = ("1shot", "5shot")
DATA_SETS = ("miniimagenet", "tieredimagenet", "fc100", "cifar_fs", "folder")
WORDS = {"unset": None, "true": True, "false": False}
# Without the table of what was measured, which `tests/test_results.py` has.
PAGE = re.sub("<!-- options -->.*<!-- /options -->", "", (ROOT / "docs/fidelity.md").read_text(), flags=re.DOTALL)
OPTION = re.compile(r"`([a-z_]+\.[a-z_.]+)`")


def read_rows():
    """Every row of every table of the page as its cells, without headers and rules."""
    lines = PAGE.split("\n")
    is_rule = [bool(re.fullmatch(r"\|( --- \|)+", line)) for line in lines] + [False]
    for number, line in enumerate(lines):
        if line.startswith("|") and not is_rule[number] and not is_rule[number + 1]:
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


ROWS = list(read_rows())
OPTIONS = [(OPTION.fullmatch(row[0]), row) for row in ROWS]
# option -> the variants' cells on mini-ImageNet; (option, data set) -> those that differ on another one
TABLE = {match[1]: row[1:5] for match, row in OPTIONS if match and row[1] not in ("fc100, cifar_fs", *DATA_SETS)}
OTHERS = {
    (match[1], name): row[2:6] for match, row in OPTIONS if match for name in row[1].split(", ") if name in DATA_SETS
}


def flat_config(variant, shot, name="miniimagenet"):
    """A config as {'meta.lr': 1e-3, ...}."""
    # `folder` without a word is sized for a CPU.
    default = f"resnet12_640,{shot}" if name == "folder" else shot
    words = default if variant == "default" else f"{variant},{shot}"
    return flatten_dict(importlib.import_module(f"mtl_jax.configs.{name}").get_config(words).to_dict(), sep=".")


def parse(cell, shot):
    """A cell's value: a word, a number, a tuple (of 255ths), or one for each shot."""
    parts = cell.split(";")
    text = parts[min(SHOTS.index(shot), len(parts) - 1)].strip()
    if text in WORDS:
        return WORDS[text]
    scale = 255 if text.endswith("/255") else 1
    try:
        value = ast.literal_eval(text.removesuffix("/255"))
    except ValueError:
        return text
    return tuple(x / scale for x in value) if isinstance(value, tuple) else value


def same(a, b):
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and np.allclose(a, b)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


@pytest.mark.parametrize("shot", SHOTS)
@pytest.mark.parametrize("name", DATA_SETS)
def test_another_preset_changes_what_the_tables_say_and_nothing_else(name, shot):
    """Each option of the tables has each variant's value, and every other is the same in all variants."""
    configs = {variant: flat_config(variant, shot, name) for variant in VARIANTS}
    known = TABLE | {key: cells for (key, other), cells in OTHERS.items() if other == name}
    for number, (variant, found) in enumerate(configs.items()):
        for key, cells in known.items():
            said = parse(cells[number], shot)
            assert same(found[key], said), f"{variant}: {key}: {found[key]!r}, docs/fidelity.md says {said!r}"
        for key in found.keys() - known.keys():
            assert same(found[key], configs["default"][key]), f"{key} differs, but docs/fidelity.md has no row of it"


def test_every_row_of_the_tables_says_something():
    """An option of the main tables differs between variants, one of the other data sets from mini-ImageNet's."""
    assert len(TABLE) > 50 and len(OTHERS) > 10
    for key, cells in TABLE.items():
        values = [parse(cell, shot) for shot in SHOTS for cell in cells]
        assert any(not same(value, values[0]) for value in values), f"{key}: a row without a difference"
    for (key, name), cells in OTHERS.items():
        assert list(cells) != TABLE.get(key), f"{key} on {name}: the values are mini-ImageNet's"


def test_every_row_names_its_proofs_and_they_exist():
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(ROWS) > 90
    for row in ROWS:
        proofs = re.fullmatch(r"`test_\w+`(, `test_\w+`)*", row[-1])
        assert proofs, f"{row[0]}: no proof is named"
        missing = [proof for proof in re.findall(r"`(\w+)`", row[-1]) if f"def {proof}(" not in written]
        assert not missing, f"{row[0]}: {missing}"


@pytest.mark.parametrize("argument", ["", "1shot", "5shot", "conv4", "5shot,conv4"])
def test_a_folder_is_sized_for_a_cpu_unless_a_large_backbone_or_a_variant_is_named(argument):
    get_config = importlib.import_module("mtl_jax.configs.folder").get_config
    found = get_config(argument)
    assert (found.backbone.name, found.data.image_size, found.data.crop) == ("conv4", 32, 0)
    assert (found.pretrain.steps, found.pretrain.batch_size, found.meta.steps) == (2000, 64, 200)
    assert found.meta.shot == (5 if "5shot" in argument else 1)
    for large in ("resnet12", "pytorch"):
        assert get_config(",".join(filter(None, [large, argument.replace("conv4", "")]))).pretrain.steps > 30_000 - 1


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("argument", ["", "pytorch,1shot", "5shot,tensorflow", "tensorflow,resnet18", "paper", "conv4"])
def test_every_argument_gives_a_valid_config(name, argument):
    found = importlib.import_module(f"mtl_jax.configs.{name}").get_config(argument)
    config.validate(found)
    assert found.data.name == name
    assert found.meta.shot == (5 if "5shot" in argument else 1)
    build.backbone(found.backbone)
    build.meta_optimizer(found.meta)


@pytest.mark.parametrize("argument", ["pytroch", "pytorch,paper", "1shot,5shot", "resnet12,resnet18", "pytorch 1shot"])
def test_other_arguments_are_refused(argument):
    with pytest.raises(ConfigError, match="expected at most one word of each of: pytorch, tensorflow, paper; conv4"):
        miniimagenet.get_config(argument)


def test_epochs_become_steps():
    """Batches of 128: 300 an epoch of mini-ImageNet, 282 of FC100 with the last partial one."""
    mini = miniimagenet.get_config("pytorch")
    assert mini.pretrain.steps == 110 * 300
    assert mini.pretrain.decay_every == 30 * 300
    assert (mini.meta.steps, mini.meta.decay_every, mini.meta.val_every) == (100 * 100, 10 * 100, 100)
    fc100 = importlib.import_module("mtl_jax.configs.fc100").get_config("pytorch")
    assert (fc100.pretrain.steps, fc100.pretrain.val_every) == (110 * 282, 282)
    rates = build.optimizers.schedule(0.1, decay="steps", every=mini.pretrain.decay_every, factor=0.2)
    wanted = [0.1 * 0.2 ** ((epoch - 1) // 30) for epoch in (1, 30, 31, 61, 110)]
    np.testing.assert_allclose([rates((epoch - 1) * 300) for epoch in (1, 30, 31, 61, 110)], wanted, rtol=1e-5)


@pytest.mark.parametrize(("name", "extra"), [("miniimagenet", (10, 4)), ("fc100", (20, 10))])
def test_hard_tasks_are_the_papers(name, extra):
    get_config = importlib.import_module(f"mtl_jax.configs.{name}").get_config
    for shot, wanted in zip(SHOTS, extra, strict=True):
        hard = get_config(f"paper,{shot}").hard_tasks
        assert (hard.enabled, hard.round, hard.extra) == (True, 10, wanted)


def test_validation_has_sizes_of_its_own():
    """The PyTorch code validates its pre-training by 1-shot tasks, TensorFlow's meta-training with K queries."""
    found = miniimagenet.get_config("pytorch,5shot")
    assert build.validation(found, found.pretrain)[:4] == (5, 1, 15, 600)
    assert build.validation(found, found.meta)[:4] == (5, 5, 15, 600)
    found = miniimagenet.get_config("tensorflow,5shot")
    assert build.validation(found, found.meta)[:4] == (5, 5, 5, 600)


def test_small_images_stay_small_by_default_alone():
    get_config = importlib.import_module("mtl_jax.configs.fc100").get_config
    assert get_config("1shot").data.image_size == 32
    assert get_config("pytorch").data.image_size == 92
    assert get_config("tensorflow").data.image_size == 84


def test_backbones_of_the_presets_have_the_references_channels():
    assert presets.NAMES[:5] == ("conv4", "resnet12", "resnet12_640", "resnet18", "resnet25")
    for argument in ("pytorch", "tensorflow", "paper"):
        options = miniimagenet.get_config(argument).backbone
        assert build.backbone(options).options.width == create_backbone(options.name).options.width == 1.0


@pytest.mark.parametrize(
    ("words", "rate"), [("1shot", 0.05), ("resnet12,1shot", 0.01), ("resnet25,5shot", 0.05), ("pytorch,resnet12", 0.1)]
)
def test_the_default_alone_has_a_rate_by_backbone(words, rate):
    assert fc100.get_config(words).pretrain.lr == rate


def test_what_the_backbone_does_not_read_is_refused_in_a_config_and_forgiven_in_a_saved_one():
    """Presets of older versions set resnet18's resize for all backbones, and their runs hold it."""
    for words, pixels in (("tensorflow", 0), ("tensorflow,resnet18", 224), ("paper,resnet18", 224), ("resnet18", 0)):
        assert miniimagenet.get_config(words).backbone.resize == pixels
    found = miniimagenet.get_config("tensorflow")
    found.backbone.resize = 224
    with pytest.raises(ConfigError, match=r"config\.backbone\.resize is 224, but resnet12"):
        config.validate(found)
    config.validate(config.complete(config.to_json(found)))
    found.backbone.update({"resize": 0, "norm": "layer"})
    with pytest.raises(ConfigError, match=r"backbone\.norm_scale is False.*keep norm_scale True"):
        config.validate(found)


def test_norm_affine_needs_something_to_learn():
    found = miniimagenet.get_config("tensorflow")
    found.meta.norm_affine = True
    with pytest.raises(ConfigError, match=r"meta\.norm_affine is True, but .*nothing to learn"):
        config.validate(found)
