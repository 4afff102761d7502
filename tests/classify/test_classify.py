"""`python -m mtl_jax.classify`: the story of a few photographs of each class and a folder of unsorted ones."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from test_classifier import stripes
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax import FewShotClassifier, classify
from mtl_jax.classify import __main__ as classify_main
from mtl_jax.classify import contact_sheet
from mtl_jax.classify.sort import Prediction
from mtl_jax.export import embedding

KINDS = ("vertical", "horizontal", "diagonal")


@pytest.fixture
def folders(tmp_path):
    """support/CLASS/*.png, three of each, and query/{,more/}*, ten of each; and two files that are no images."""
    for kind, name in enumerate(KINDS):
        for i, image in enumerate(stripes(13, kind, seed=4)):
            folder = tmp_path / ("support/" + name if i < 3 else "query/more" if i % 2 else "query")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(folder / f"{name}-{i}.{'jpg' if i % 3 else 'png'}")
    (tmp_path / "query" / "broken.png").write_bytes(b"no image")
    (tmp_path / "query" / "notes.txt").write_text("no image either")
    return tmp_path


def _run(workdir, folders, *words):
    paths = {"support": folders / "support", "query": folders / "query", "output": folders / "out" / "p.csv"}
    if "--no-support" in words:
        del paths["support"]
    defaults = [
        f"--{name}={path}" for name, path in paths.items() if not any(w.startswith(f"--{name}=") for w in words)
    ]
    return classify_main.main(["", f"--workdir={workdir}", *defaults, *(w for w in words if w != "--no-support")])


def _table(folders):
    with open(folders / "out" / "p.csv") as file:
        return list(csv.DictReader(file))


def test_the_story(tiny_run, folders, capsys):  # noqa: F811
    assert _run(tiny_run, folders, f"--copy={folders / 'sorted'}") == 0
    printed = capsys.readouterr()
    assert "3 classes of 3 images each; 30 images sorted, 2 left out: " in printed.out
    for name in ("broken.png", "notes.txt"):
        assert f"left out: {folders / 'query' / name}: not an image but data that starts with b'no image" in printed.err
    rows = _table(folders)
    assert tuple(rows[0]) == classify.sort.COLUMNS and len(rows) == 30
    right = sum(row["file"].rsplit("/", 1)[-1].startswith(row["class"]) for row in rows)
    assert right > 24
    for row in rows:
        copied = folders / "sorted" / row["class"] / row["file"]
        assert copied.read_bytes() == (folders / "query" / row["file"]).read_bytes()
        assert float(row["probability"]) >= float(row["runner_up_probability"]) and row["runner_up"] in KINDS
        assert row["runner_up"] != row["class"]
    with Image.open(folders / "out" / "p.png") as sheet:
        assert sheet.format == "PNG" and sheet.size[0] > 1000


def test_the_same_as_the_classifier_in_python(tiny_run, folders):  # noqa: F811
    _run(tiny_run, folders)
    files = sorted((folders / "support").rglob("*.*"))
    classifier = FewShotClassifier.from_workdir(tiny_run).fit(files, [file.parent.name for file in files])
    rows = _table(folders)
    probabilities = classifier.predict_proba([folders / "query" / row["file"] for row in rows])
    np.testing.assert_allclose(probabilities.max(1), [float(row["probability"]) for row in rows], atol=1e-3)
    assert classifier.answers(probabilities).tolist() == [row["class"] for row in rows]


def test_only_the_uncertain_are_unknown_and_their_runner_up_is_what_they_might_have_been(tiny_run, folders):  # noqa: F811
    _run(tiny_run, folders)
    plain = _table(folders)
    threshold = np.median([float(row["probability"]) for row in plain])
    _run(tiny_run, folders, f"--unknown={threshold}")
    rows = _table(folders)
    unknown = [row["class"] == "unknown" for row in rows]
    assert 0 < sum(unknown) < len(rows)
    _run(tiny_run, folders, f"--unknown={threshold}", "--unknown-label=none of them")
    assert [row["class"] == "none of them" for row in _table(folders)] == unknown
    for before, row, is_unknown in zip(plain, rows, unknown, strict=True):
        assert row["probability"] == before["probability"]
        assert row["runner_up"] == (before["class"] if is_unknown else before["runner_up"])


def test_a_single_class_has_no_runner_up(tiny_run, folders):  # noqa: F811
    shutil.copytree(folders / "support" / "vertical", folders / "one" / "vertical")
    _run(tiny_run, folders, f"--support={folders / 'one'}")
    for row in _table(folders):
        assert (row["class"], row["probability"], row["runner_up"]) == ("vertical", "1.0000", "")


def test_without_a_workdir_the_network_of_the_package_is_taken(folders):
    flags = [f"--query={folders / 'query'}", f"--output={folders / 'p.csv'}"]
    saved = folders / "stripes.safetensors"
    words = [f"--support={folders / 'support'}", "--backbone=fc100-conv4", f"--save={saved}"]
    assert classify_main.main(["", *words, *flags]) == 0
    table = (folders / "p.csv").read_text()
    files = sorted((folders / "support").rglob("*.*"))
    classifier = FewShotClassifier.from_pretrained("fc100-conv4").fit(files, [file.parent.name for file in files])
    rows = list(csv.DictReader(table.splitlines()))
    assert classifier.predict([folders / "query" / row["file"] for row in rows]).tolist() == [r["class"] for r in rows]
    assert classify_main.main(["", f"--classifier={saved}", *flags]) == 0
    assert (folders / "p.csv").read_text() == table


def test_a_classifier_of_a_run_says_that_it_needs_the_run(tiny_run, folders, capsys):  # noqa: F811
    saved, flags = folders / "stripes.safetensors", [f"--query={folders / 'query'}"]
    assert _run(tiny_run, folders, f"--save={saved}") == 0
    assert classify_main.main(["", f"--classifier={saved}", *flags]) == 2
    assert (
        "was not fitted with a network of the package; give its own, --workdir=DIR or --backbone=FILE"
        in capsys.readouterr().err
    )


def test_links_and_what_is_there_already(tiny_run, folders, capsys):  # noqa: F811
    assert _run(tiny_run, folders, f"--link={folders / 'sorted'}") == 0
    links = [path for path in (folders / "sorted").rglob("*") if path.is_symlink()]
    assert len(links) == 30 and all(path.resolve().is_file() for path in links)
    assert _run(tiny_run, folders, f"--link={folders / 'sorted'}") == 2
    assert "exists already; give another folder, nothing is overwritten" in capsys.readouterr().err


def test_a_saved_classifier_says_the_same_and_unknown_where_asked(tiny_run, folders):  # noqa: F811
    saved = folders / "stripes.safetensors"
    assert _run(tiny_run, folders, f"--save={saved}") == 0
    first = _table(folders)
    assert _run(tiny_run, folders, "--no-support", f"--classifier={saved}") == 0
    assert _table(folders) == first
    assert _run(tiny_run, folders, "--no-support", f"--classifier={saved}", "--unknown=1", "--temperature=50") == 0
    rows = _table(folders)
    assert {row["class"] for row in rows} == {"unknown"}
    assert all(row["runner_up"] in KINDS and row["probability"] == row["runner_up_probability"] for row in rows)


def test_one_image_is_a_query_too(tiny_run, folders, capsys):  # noqa: F811
    image = next((folders / "query").glob("vertical-*"))
    assert _run(tiny_run, folders, f"--query={image}", f"--copy={folders / 'sorted'}") == 0
    (row,) = _table(folders)
    assert row["file"] == image.name and (folders / "sorted" / row["class"] / image.name).is_file()
    assert "3 classes of 3 images each; 1 image sorted, 0 left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--query=none"], "none: no such folder"), (["--support=none"], "none: no such folder"),
     (["--no-support"], "give either --support=DIR or --classifier=FILE"),
     (["--classifier=none"], "give either --support=DIR or --classifier=FILE"),
     (["--no-support", "--classifier=none"], "none: no such file"), (["--unknown=3"], "unknown_threshold is 3.0")],
)  # fmt: skip
def test_mistakes_are_one_line(tiny_run, folders, capsys, words, message):  # noqa: F811
    assert _run(tiny_run, folders, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_class_called_unknown_needs_another_label(tiny_run, folders, capsys):  # noqa: F811
    (folders / "support/vertical").rename(folders / "support/unknown")
    assert _run(tiny_run, folders, "--unknown=0.5") == 2
    assert "'unknown' is a class of its own; give another unknown_label (--unknown-label)" in capsys.readouterr().err
    assert _run(tiny_run, folders, "--unknown=0.5", "--unknown-label=neither") == 0


def test_what_is_left_out_of_the_support_is_named_and_counted(tiny_run, folders, capsys):  # noqa: F811
    photo = folders / "support/vertical/vertical-0.png"
    photo.rename(photo.with_suffix(".heic"))
    (folders / "support/diagonal/notes.txt").write_text("a text")
    (folders / "support/labels.csv").write_text("file,label")
    assert _run(tiny_run, folders) == 0
    printed = capsys.readouterr()
    assert "3 classes of 3 images each, 2 files left out; 30 images sorted, 2 left out: " in printed.out
    lines = printed.err.splitlines()
    assert f"left out: {folders / 'support/labels.csv'}: not an image but data that starts with b'file,lab'" in lines
    assert sum(line.startswith(f"left out: {folders / 'support'}") for line in lines) == 2


@pytest.mark.parametrize("words", [(), ("--query={}/query/broken.png",)])
def test_queries_that_cannot_be_read_at_all_are_an_error(tiny_run, folders, capsys, words):  # noqa: F811
    for file in (folders / "query").rglob("*.*g"):
        file.write_bytes(b"\x89PNG\r\n\x1a\n" if file.name != "broken.png" else b"")
    assert _run(tiny_run, folders, *(word.format(folders) for word in words)) == 2
    printed = capsys.readouterr()
    count = "1 file" if words else "32 files"
    assert not printed.out and not (folders / "out").exists()
    *lines, last = printed.err.splitlines()
    assert last.startswith("error: ") and f"no image that can be read, {count} left out; nothing is written" in last
    assert len(lines) == int(count.split()[0]) and all(line.startswith("left out: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--output={}/p.png"], "the contact sheet would overwrite the table"),
     (["--output={}/p.PNG"], "the contact sheet would overwrite the table"),
     (["--sheet={}/out/../out/p.csv"], "the contact sheet would overwrite the table"),
     (["--save={}/out/p.png"], "the classifier would overwrite the contact sheet"),
     (["--output={}/query/vertical-4.jpg"], "the table would overwrite a photograph"),
     (["--sheet={}/support/vertical/vertical-0.png"], "the contact sheet would overwrite a photograph"),
     (["--output={}/query"], "a folder; the table is a file")],
)  # fmt: skip
def test_nothing_that_is_read_or_written_is_overwritten(tiny_run, folders, capsys, words, message):  # noqa: F811
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    assert _run(tiny_run, folders, *(word.format(folders) for word in words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert before == {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}


def test_classes_of_any_script_are_sorted_and_what_the_sheet_cannot_show_is_said(tiny_run, folders, capsys):  # noqa: F811
    names = {"vertical": "Mu\u0308ller", "horizontal": "ⴰⴱ", "diagonal": "\U0001b170 \n"}  # the last: no font has Nüshu
    for old, new in names.items():
        (folders / "support" / old).rename(folders / "support" / new)
    assert _run(tiny_run, folders) == 0
    assert {row["class"] for row in _table(folders)} == {"Müller", "ⴰⴱ", "\U0001b170 \n"}
    err = capsys.readouterr().err
    assert "warning: no font on this machine has \U0001b170; " in err and "such as U+1B170; install a font" in err


def test_a_damaged_or_misplaced_support_image_is_an_error(tiny_run, folders, capsys):  # noqa: F811
    broken = folders / "support" / "vertical" / "x.png"
    broken.write_bytes(b"")
    assert _run(tiny_run, folders) == 2
    assert "x.png: the file is empty" in capsys.readouterr().err
    broken.rename(folders / "support" / "x.png")
    assert _run(tiny_run, folders) == 2
    assert "x.png: in no class folder" in capsys.readouterr().err
    (folders / "support" / "x.png").unlink()
    (folders / "support" / "dots").mkdir()
    assert _run(tiny_run, folders) == 2
    assert "dots: a class without images" in capsys.readouterr().err


def test_the_sheet_shows_each_class_and_says_what_it_leaves_out():
    rows = [Prediction(f"{i}.png", f"class {i % 3}", i / 1000, "other", 0.0) for i in range(900)]
    grey = [np.full((96, 96, 1), 100, np.uint8)] * 900
    sheet = np.asarray(contact_sheet.draw(rows, grey))
    shown = (sheet == 100).all(-1).sum() / 96**2
    assert abs(shown - 3 * (contact_sheet.MAX_IMAGES // 3)) < 5  # the text has a few such pixels
    assert contact_sheet.draw([], []).size[1] > 0


def test_what_is_written_in_a_cell_stays_in_it():
    row = Prediction("a-file-with-quite-a-long-name.png", "W" * 40, 0.5, "W" * 40, 0.4)
    sheet = np.asarray(contact_sheet.draw([row], [np.full((96, 96, 1), 255, np.uint8)]).convert("L"))
    below = sheet[contact_sheet.MARGIN + contact_sheet.LINE + 6 + 90 :]
    columns = np.flatnonzero((below < 200).any(0))
    assert len(columns) > 0 and columns.max() < contact_sheet.MARGIN + contact_sheet.CELL


def test_a_photograph_in_two_class_folders_is_refused(tiny_run, folders, capsys):  # noqa: F811
    shutil.copy(folders / "support/vertical/vertical-0.png", folders / "support/diagonal/again.png")
    assert _run(tiny_run, folders) == 2
    err = capsys.readouterr().err
    assert (
        "vertical-0.png: the same image as" in err
        and "labelled 'vertical' instead of 'diagonal'; keep it under one label" in err
    )
    assert err.count("\n") == 1


def test_other_copies_of_photographs_are_said(tiny_run, folders, capsys):  # noqa: F811
    shutil.copy(folders / "support/vertical/vertical-0.png", folders / "support/vertical/again.png")
    shutil.copy(folders / "support/diagonal/diagonal-0.png", folders / "query/known.png")
    assert _run(tiny_run, folders) == 0
    err = capsys.readouterr().err
    assert "warning: " in err and "is the same image as" in err and "a copy counts twice" in err
    assert "warning: known.png is in --support too: its answer is not a prediction" in err


def test_the_network_for_photographs_is_the_default():
    classifier = FewShotClassifier.from_pretrained()
    assert classifier.embed.fingerprint == embedding.pretrained("imagenet-lite0").fingerprint
    assert "(imagenet-lite0)" in classify_main.parser().format_help()
