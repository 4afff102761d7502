"""Wrong command lines of every program: one line that says what is wrong, status 2, and nothing decoded or compiled."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax import config, workdir
from mtl_jax.data import decode
from mtl_jax.errors import ConfigError
from mtl_jax.launch.program import run
from mtl_jax.train import loop

CONFIGS = {
    "key": "config.meta.wya = 3",
    "group": "config.mata = config.meta",
    "type": "config.meta.way = 'many'",
    "replaced": "config.seed = None",
    "number": "config.meta.lr = float('nan')",
    "raises": "config.meta.way = 1 // 0",
    "nothing": "return None",
    "dict": "return {'seed': 1}",
    "syntax": "config.meta.way = = 3",
    "import": "import no_such_module",
}

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # how ml_collections runs a config file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Class folders of tiny PNGs, a workdir with a config and no more, and wrong config files."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for split, classes in (("train", 4), ("val", 3), ("test", 3)):
        for number in range(classes):
            folder = root / "data" / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for image in range(4):
                Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(folder / f"{image}.png")
    for image in range(4):
        (root / "alone" / "test" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(root / "alone/test/a" / f"{image}.png")
    for name, line in CONFIGS.items():
        lines = [
            "from mtl_jax.configs import default",
            "",
            "",
            "def get_config():",
            "    config = default.get_config()",
        ]
        (root / f"{name}.py").write_text("\n".join([*lines, f"    {line}", "    return config", ""]))
    (root / "empty.py").write_text("x = 1\n")
    return root


def good(world, *without):
    """Words of a run that train.py would take, but for those whose names start with one of `without`."""
    words = [
        "--config=configs/default.py", f"--workdir={world / 'run'}", "--config.data.name=folder",
        f"--config.data.path={world / 'data'}", f"--config.data.cache_dir={world / 'cache'}", "--config.meta.way=2",
        "--config.meta.query=2", "--config.pretrain.steps=6", "--config.meta.steps=6",
    ]  # fmt: skip
    names = [word.partition("=")[0] for word in without]
    return [word for word in words if word.partition("=")[0] not in names]


def said(program, words, monkeypatch, capsys):
    """What a program says of a command line that it has to refuse."""
    package = importlib.import_module(program)
    module = importlib.import_module(f"{program}.__main__") if hasattr(package, "__path__") else package
    argv = [f"{program}.py", *map(str, words)]
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the config file of the test before
    monkeypatch.setenv("MTL_JAX_XLA_FLAGS", "0")
    monkeypatch.setattr(decode, "decode", lambda *_, **__: pytest.fail("an image was decoded"))
    monkeypatch.setattr(loop, "run_phase", lambda *_, **__: pytest.fail("training began"))
    direct = program in ("mtl_jax.data", "mtl_jax.frozen_episodes", "mtl_jax.report", "mtl_jax.export",
                         "mtl_jax.classify", "mtl_jax.demo_page")  # fmt: skip
    status = module.main(argv[1:] if "data" in program else argv) if direct else run(module.main, argv)
    found = capsys.readouterr().err
    assert status == 2, found
    assert not Path("/nowhere").exists()
    return found


TRAIN = {
    # Keys
    "--config.meta.wya=3": r"config\.meta\.wya is not a config key \(did you mean config\.meta\.way\?\)",
    "--config.way=3": r"config\.way is not a config key .*did you mean config\.evaluate\.way or config\.meta\.way\?",
    "--config.mta.way=3": r"config\.mta\.way is not a config key .*did you mean config\.meta\.way",
    "--config.meta.zzzzzz=3": r"config\.meta\.zzzzzz is not a config key; config\.meta has adam_eps, batch_norm, ",
    "--config.meta=3": r"--config\.meta is a group of keys; give one of them, such as --config\.meta\.adam_eps=",
    "--config.pretrain.augment.shfit=2": r"did you mean config\.pretrain\.augment\.shift",
    # Types
    "--config.meta.way=five": r"--config\.meta\.way is 'five', expected a whole number",
    "--config.meta.way=2.5": r"--config\.meta\.way is '2\.5', expected a whole number",
    "--config.meta.lr=fast": r"--config\.meta\.lr is 'fast', expected a number",
    "--config.inner.first_order=maybe": r"--config\.inner\.first_order is 'maybe', expected true or false",
    "--config.data.std=grey": r"config\.data\.std is \('grey',\), expected numbers in parentheses",
    "--config.meta.val_shot=one": r"--config\.meta\.val_shot is 'one', expected a whole number",
    "--config.meta.lr=nan": r"config\.meta\.lr is nan, expected a number",
    # Ranges and choices
    "--config.meta.way=1": r"config\.meta\.way is 1, expected 2 or more",
    "--config.meta.lr=-1": r"config\.meta\.lr is -1\.0, expected 0 or more",
    "--config.data.std=(0.5,0)": r"config\.data\.std is \(0\.5, 0\), expected numbers of more than 0",
    "--config.pretrain.label_smoothing=1.5": r"label_smoothing is 1\.5, expected 0 or more and less than 1",
    "--config.backbone.width=0": r"config\.backbone\.width is 0\.0, expected more than 0",
    "--config.seed=-4": r"config\.seed is -4, expected 0 or more and at most",
    "--config.runtime.keep=0": r"config\.runtime\.keep is 0, expected 1 or more",
    "--config.meta.batch_norm=runing": r"batch_norm is 'runing', expected one of .*did you mean running\?",
    "--config.data.channels=2": r"config\.data\.channels is 2, expected one of 0, 1, 3",
    "--config.backbone.name=resnet": r"config\.backbone\.name is 'resnet', expected one of .*did you mean resnet",
    # Contradictions
    "--config.meta.decay=steps": r"config\.meta\.decay is 'steps', but config\.meta\.decay_every is 0",
    "--config.meta.steps=0": r"config\.meta\.steps is 0, expected 1 or more",
    "--config.pretrain.steps=0": r"config\.pretrain\.steps is 0, expected 1 or more: only a run with .*\.init can",
    "--config.runtime.devices=64": r"config\.runtime\.devices is 64, but there are \d",
    "--config.runtime.steps_per_dispatch=4": r"config\.pretrain\.steps is 6, expected a multiple of .*_dispatch, 4",
    "--config.data.fractions=(0.5,0.2,0.2)": r"config\.data\.fractions is \(0\.5, 0\.2, 0\.2\), expected .*up to 1",
    "--config.data.crop=20 --config.data.image_size=12": r"config\.data\.crop is 20, expected at most .*image_size, 12",
    "--config.hard_tasks.enabled --config.hard_tasks.extra=3": r"hard_tasks\.extra is 3, expected a multiple of .*, 4",
    "--config.inner.adapt=all --config.inner.features=l2": r"inner\.features is 'l2', which .*inner\.adapt 'all'",
    "--config.backbone.dropblock=2": r"dropblock is 2, but conv4 with norm 'batch' does not use it",
    "--config.backbone.dropblock=2 --config.backbone.name=resnet12_640": r"dropblock is 2, but .*dropout is None: noth",
    "--config.pretrain.dropblock_ramp=9": r"pretrain\.dropblock_ramp is 9, but config\.backbone\.dropblock is 0",
    "--config.pretrain.rotation=1 --config.pretrain.rotation_views=quarter --config.pretrain.shuffle=once": (
        r"pretrain\.rotation_views is 'quarter', which .* config\.pretrain\.shuffle is 'once'"
    ),
    "--config.pretrain.init=/nowhere": r"config\.pretrain\.init is '/nowhere': no such file or folder",
    "--config.pretrain.teacher=/nowhere": r"pretrain\.teacher is '/nowhere', which has no pre-training checkpoint",
    # What the data's index says
    "--config.meta.way=5": r"train has 4 classes, too few for 5-way tasks; .*meta\.way=4 \(evaluate\.py: --way=4\)",
    "--config.meta.way=4": r"val has 3 classes, too few for 4-way tasks; add classes, or give --config\.meta\.way=3 ",
    "--config.meta.shot=3": r"train has 4 classes with fewer than 3 \+ 2 images",
    "--config.meta.val_query=4": r"val has 3 classes with fewer than 1 \+ 4 images",
    "--config.data.path=/nowhere": r"/nowhere",
    "--config.data.name=omnigolt": r"omnigolt",
    # Flags
    "--config.seed=1 --config.seed=2": r"--config\.seed is given twice \(1 and 2\)",
    "--workdir=a": r"--workdir is given twice",
    "--noconfig.inner.remat --config.inner.remat": r"--config\.inner\.remat is given twice",
    "config.seed=1": r"'config\.seed=1' is not a flag: flags start with two dashes; write --config\.seed=1",
    "--config.meta.way": r"--config\.meta\.way has no value, expected a whole number",
    "seed": r"'seed' is not a flag: flags start with two dashes, such as",
    "--wrokdir=a": r"--wrokdir is not a flag \(did you mean --workdir\?\)",
    "--seed=3": r"--seed is not a flag",
    "--num_seeds=two": r"--num_seeds is 'two', expected a whole number",
    "--num_seeds=0": r"--num_seeds=0, expected 1 or more",
    "--dry_run --replay=2": r"--dry_run and --replay cannot be combined",
    "--replay=last": r"--replay=last: expected a step",
    "--replay=3": r"no run to replay here",
    # Config files
    "--config=configs/glyhps.py": r"--config=configs/glyhps\.py: no such file \(did you mean configs/glyphs\.py\?\)",
    "--config=configs/glyphs.py:3shot": (
        r"--config=configs/glyphs\.py:3shot: config argument '3shot': expected 1shot or 5shot \(did you mean 5shot\?\)"
    ),
    "--config=configs/omniglot.py:1-shot": r"'1-shot': expected 1shot or 5shot \(did you mean 1shot\?\)",
    "--config=configs/ablation.py:ssall": r"row 'ssall' is unknown \(did you mean ss_all\?\)",
    "--config=configs/miniimagenet.py:pytroch,1shot": r"config argument 'pytroch,1shot': .* \(did you mean pytorch\?\)",
    "--config=configs/default.py:1shot": r"that config takes no argument; write --config=\S*configs/default\.py$",
    # Workdirs, with --dry_run as well
    "--dry_run --workdir={world}/key.py": r"key\.py: cannot be a workdir: Not a directory; give another --workdir",
    "--dry_run --workdir={world}/key.py/run": r"key\.py/run: cannot be a workdir: Not a directory",
    "--dry_run --workdir=/proc/run": r"/proc/run: cannot be a workdir: .*; give another --workdir",
    "--config={world}": r"no such file",
    "--config={world}/key.py": r"key\.py: config\.meta\.wya is not a config key .*did you mean config\.meta\.way",
    "--config={world}/group.py": r"group\.py: config\.mata\.\w+ is not a config key",
    "--config={world}/type.py": r"type\.py, line 6: TypeError: .*way",
    "--config={world}/replaced.py": r"replaced\.py: config\.seed is None, expected a whole number",
    "--config={world}/number.py": r"number\.py: config\.meta\.lr is nan, expected a number",
    "--config={world}/raises.py": r"raises\.py, line 6: ZeroDivisionError",
    "--config={world}/nothing.py": r"nothing\.py: get_config\(\) gives None; expected a ConfigDict",
    "--config={world}/dict.py": r"dict\.py: get_config\(\) gives dict; expected a ConfigDict",
    "--config={world}/syntax.py": r"syntax\.py.*SyntaxError",
    "--config={world}/import.py": r"import\.py, line 6: ModuleNotFoundError: .*no_such_module",
    "--config={world}/empty.py": r"empty\.py.*get_config",
}


@pytest.mark.parametrize("line", TRAIN)
def test_train_says_in_a_line_what_is_wrong(world, line, monkeypatch, capsys):
    words = line.replace("{world}", str(world)).split()
    twice = () if words[0] == "--workdir=a" else words
    kept = good(world, *twice)
    if words[0].startswith("--config=") and "configs/" not in words[0]:
        kept = [word for word in kept if not word.startswith("--config.")]
    check_line(said("mtl_jax.train", [*kept, *words], monkeypatch, capsys), TRAIN[line])
    assert not (world / "run" / "config.json").exists()


def check_line(found, pattern):
    assert found.startswith("error: ") and found.count("\n") == 1, found
    assert re.search(pattern, found), found


@pytest.mark.parametrize("name", ["--config", "--workdir"])
def test_what_is_missing_is_said(world, name, monkeypatch, capsys):
    words = [word for word in good(world, name) if name != "--config" or not word.startswith("--config.")]
    check_line(said("mtl_jax.train", words, monkeypatch, capsys), f"{name} is missing; give {name}=")


def test_data_without_a_train_split_is_said_before_anything_is_decoded(world, monkeypatch, capsys):
    words = [*good(world, "--config.data.path"), f"--config.data.path={world / 'alone'}"]
    check_line(
        said("mtl_jax.train", words, monkeypatch, capsys), r"no train split, only test: use it with evaluate\.py"
    )


EVALUATE = {
    "--way=0": r"config\.evaluate\.way is 0, expected 2 or more",
    "--way=two": r"--way is 'two', expected a whole number",
    "--shot=0": r"config\.evaluate\.shot is 0, expected 1 or more",
    "--num_tasks=-5": r"config\.evaluate\.num_tasks is -5, expected 1 or more",
    "--split=tset": r"config\.evaluate\.split is 'tset', expected one of .*did you mean test\?",
    "--config.evaluate.wya=3": r"config\.evaluate\.wya is not a config key .*did you mean config\.evaluate\.way",
    "--config.evaluate.flips=3.5": r"--config\.evaluate\.flips is '3\.5', expected true or false",
    "--config.meta.way=3": r"was trained with another config: meta\.way: 2 in the checkpoint, 3 now",
    "--shot=3 --config.evaluate.shot=3": r"--shot and --config\.evaluate\.shot are the same",
    "--shot=3 --shot=2": r"--shot is given twice \(3 and 2\)",
    "--config.evaluate.seed=1 --config.evaluate.seed=2": r"--config\.evaluate\.seed is given twice",
    "shot=3": r"'shot=3' is not a flag: flags start with two dashes; write --shot=3",
    "--episodes=/nowhere.json": r"/nowhere\.json",
    "--weights=/nowhere.pth": r"--weights needs --config=FILE\.py",
    "--tasks=5": r"--tasks is not a flag",
    "--workdir=/nowhere": r"/nowhere/config\.json: .*give the workdir of a train\.py run",
}


@pytest.mark.parametrize("line", EVALUATE)
def test_evaluate_says_in_a_line_what_is_wrong(world, line, monkeypatch, capsys):
    place = world / "trained"
    settings = config.complete({"meta": {"way": 2}, "data": {"name": "folder", "path": str(world / "data")}})
    workdir.write_json_atomic(place / "config.json", config.to_json(settings))
    words = line.split() if "--workdir" in line else [f"--workdir={place}", *line.split()]
    check_line(said("mtl_jax.evaluate", words, monkeypatch, capsys), EVALUATE[line])


@pytest.mark.parametrize("program", ["evaluate", "report", "export"])
def test_a_folder_of_runs_lists_them(world, program, monkeypatch, capsys):
    seeds = world / "seeds"
    for number in range(2):
        workdir.write_json_atomic(seeds / f"seed-{number}" / "config.json", {})
    words = [str(seeds)] if program == "report" else [f"--workdir={seeds}"]
    listed = rf"{seeds} holds 2 runs; give one of them: {seeds}/seed-0, {seeds}/seed-1$"
    check_line(said(f"mtl_jax.{program}", words, monkeypatch, capsys).rstrip("\n") + "\n", listed)


def test_a_dry_run_refuses_the_workdir_of_another_config_and_leaves_it(world, monkeypatch, capsys):
    place = world / "other"
    settings = config.complete({"meta": {"way": 2}, "data": {"name": "folder", "path": str(world / "data")}})
    workdir.write_json_atomic(place / "config.json", config.to_json(settings))
    words = [*good(world, "--workdir"), f"--workdir={place}", "--dry_run"]
    check_line(said("mtl_jax.train", words, monkeypatch, capsys), r"other holds a run of another config: .*meta\.steps")
    assert [path.name for path in place.iterdir()] == ["config.json"]


OTHERS = [
    ("mtl_jax.evaluate", "", r"--workdir is missing; give --workdir="),
    ("mtl_jax.ablation", "--workdir=a --rows=mlt", r"mlt"),
    ("mtl_jax.ablation", "--workdir=a --rates=ss_all", r"--rates=ss_all: expected ROW=RATE"),
    ("mtl_jax.launch", "", r"nothing to run"),
    ("mtl_jax.launch", "--num_processes=0 -- train.py", r"--num_processes: '0', expected a whole number, 1 or more"),
    ("mtl_jax.launch", "--num_proceses=2 -- a.py", r"arguments: --num_proceses=2 \(did you mean --num_processes\?\)"),
    ("mtl_jax.demo", "--seed=one", r"--seed: invalid int value: 'one'"),
    ("mtl_jax.demo", "--sed=1", r"unrecognized arguments: --sed=1 \(did you mean --seed\?\)"),
    ("mtl_jax.demo", "--seed=1 --seed=2", r"--seed is given twice"),
    ("mtl_jax.classify", "--support=a", r"required: --query"),
    ("mtl_jax.classify", "--query=a --suport=b", r"unrecognized arguments: --suport=b \(did you mean --support\?\)"),
    ("mtl_jax.classify", "--query=/nowhere --support=/nowhere", r"/nowhere: no such folder"),
    ("mtl_jax.demo_page", "--support=/nowhere", r"/nowhere: no such folder"),
    ("mtl_jax.demo_page", "--workdir=a --backbone=fc100-conv4", r"--backbone=fc100-conv4 cannot be combined"),
    ("mtl_jax.demo_page", "--port=99999", r"--port=99999: expected 0 to 65535"),
    ("mtl_jax.demo_page", "--prot=1", r"unrecognized arguments: --prot=1 \(did you mean --port\?\)"),
    ("mtl_jax.report", "/nowhere", r"/nowhere"),
    ("mtl_jax.report", "", r"required: workdirs"),
    ("mtl_jax.export", "--workdir=/nowhere", r".+"),
    ("mtl_jax.frozen_episodes", "make --output=a.json", r"give either --workdir=DIR or --data=NAME"),
    ("mtl_jax.frozen_episodes", "make --output=a.json --data=glyphs --way=x", r"--way: invalid int value: 'x'"),
    ("mtl_jax.frozen_episodes", "make --output=a.json --data=glyphs --way=1", r"evaluate\.way is 1, expected"),
    ("mtl_jax.frozen_episodes", "mak", r"invalid choice: 'mak' .*\(did you mean make\?\)"),
    ("mtl_jax.data", "chek glyphs", r"invalid choice: 'chek' .*\(did you mean check\?\)"),
    ("mtl_jax.reference_weights", "inof a.pth", r"\(did you mean info\?\)"),
    ("mtl_jax.reference_weights", "", r"required: "),
    ("mtl_jax.reference_weights", "/nowhere.pth", r"/nowhere\.pth"),
    ("mtl_jax.data", "check nowhere", r"nowhere"),
    ("mtl_jax.data", "prepare folder /nowhere", r"/nowhere"),
    ("mtl_jax.data", "check folder . --fractions=a,b", r"--fractions: 'a,b', expected three numbers"),
    ("mtl_jax.data", "check folder . --imagesize=3", r"--imagesize=3 \(did you mean --image-size"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "line", "pattern"), OTHERS, ids=[f"{name} {line}" for name, line, _ in OTHERS])
def test_the_other_programs_say_in_a_line_what_is_wrong(program, line, pattern, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    check_line(said(program, line.split(), monkeypatch, capsys), pattern)


@pytest.mark.parametrize(("program", "line"), [("mtl_jax.train", "--config.meta.wya=3"), ("mtl_jax.demo", "--sed=1")])
def test_debug_shows_the_traceback(program, line, monkeypatch, capsys):
    found = said(program, [line, "--debug"], monkeypatch, capsys)
    assert "Traceback" in found and found.splitlines()[-1].startswith("error: ")


def test_a_broken_config_of_a_workdir_is_said(world, monkeypatch, capsys):
    place = world / "broken"
    workdir.write_json_atomic(place / "config.json", {"meta": {"way": "two"}})
    check_line(said("mtl_jax.evaluate", [f"--workdir={place}"], monkeypatch, capsys), r"config\.json: not a config")
    (place / "config.json").write_text(json.dumps([1]))
    check_line(said("mtl_jax.evaluate", [f"--workdir={place}"], monkeypatch, capsys), r"a JSON object was expected")


def test_a_run_of_an_older_version_goes_on_where_the_new_keys_default_is_what_it_did(world):
    from mtl_jax import train

    place = workdir.Workdir(world / "old")
    settings = config.complete({"meta": {"way": 2}})
    content = config.to_json(settings)
    del content["runtime"]["skip_nonfinite"], content["inner"]["features"], content["pretrain"]["average"]
    content["pretrain"]["mixup"] = 0.0  # which no version after it has, and which did nothing
    workdir.write_json_atomic(place.config, content)
    train.run._check_config(settings, place)
    settings.pretrain.average = 0.3
    with pytest.raises(ConfigError, match=r"pretrain\.average: 0\.0 in the checkpoint, 0\.3 now"):
        train.run._check_config(settings, place)
