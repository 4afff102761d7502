"""The report's figures by hand, its page as a browser takes it, and what a comparison refuses."""

import base64
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import other_tiny_run, tiny_config, tiny_run  # noqa: F401, fixtures

from mtl_jax import config, demo, report
from mtl_jax.data import Split
from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.evaluate import evaluate
from mtl_jax.evaluation import Protocol, Tasks
from mtl_jax.launch import environment
from mtl_jax.meta import Inner
from mtl_jax.report import __main__ as report_main
from mtl_jax.report import comparison, confusion, history, html, measure
from mtl_jax.report.measure import Pair
from mtl_jax.workdir import Workdir, console
from mtl_jax.workdir.checkpoint import Checkpoints

VOID = {"meta", "source", "img", "br"}
ADDRESS = re.compile(r"(?:href|src|url|import|fetch)[ =(\"']*(?:https?:)?//")


class Page(HTMLParser):
    """What a page is made of; complains of tags that are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def hand_made():
    """Two 2-way tasks over three classes, two queries a class, two inner steps; the answers of the last one matter."""
    labels = np.repeat(np.arange(3, dtype=np.int32), 3)
    images = np.arange(9 * 4 * 4, dtype=np.uint8).reshape(9, 4, 4, 1)
    names = ("ant", "bee", "cat")
    split = Split("test", images, labels, names, np.array([3, 3, 3]), np.array([b""] * 9), np.zeros((9, 16), np.uint8))
    tasks = Tasks(np.array([[[0], [3]], [[6], [3]]]), np.array([[[1, 2], [4, 5]], [[7, 8], [4, 5]]]))
    wrong = np.zeros((2, 4), np.int16)
    last = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], np.int16)  # ant: 1 of 2 for bee; cat: all right; bee: 1 of 2 for cat
    protocol = Protocol(2, 1, 2, 2, 0, Inner(2, 0.1))
    return measure.Tested(None, None, None, split, tasks, protocol, None, {}, np.stack([wrong, wrong, last], axis=1))


def test_figures_of_classes_by_hand():
    tested = hand_made()
    np.testing.assert_allclose(tested.accuracies, [0.75, 0.75])
    np.testing.assert_allclose(tested.correct.mean(-1)[:, 0], [0.5, 0.5])
    np.testing.assert_array_equal(measure.class_counts(tested), [[1, 1, 0], [0, 3, 1], [0, 0, 2]])
    np.testing.assert_array_equal(measure.met_counts(tested), [[2, 2, 0], [2, 4, 2], [0, 2, 2]])
    assert measure.ranked_classes(tested) == [(0, 0.5, 2), (1, 0.75, 4), (2, 1.0, 2)]
    assert measure.hardest_pairs(tested) == []  # no two classes met twice
    assert measure.extreme_tasks(tested, 1) == ([1], [0])


def test_hardest_pairs_need_two_tasks():
    tested = hand_made()
    twice = tested._replace(
        tasks=Tasks(*(np.concatenate([part, part[:1]]) for part in tested.tasks)),
        answers=np.concatenate([tested.answers, tested.answers[:1]]),
    )
    assert measure.hardest_pairs(twice) == [Pair(0, 1, 2 / 8, 8)]


def test_time_counts_every_start_of_a_run(tmp_path):
    lines = [(10, 5.0), (20, 9.0), (30, 3.0), (40, 4.5)]  # the third is after a stop
    records = [{"step": step, "meta/seconds": seconds, "meta/host_memory_mb": 100 + step} for step, seconds in lines]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert history.costs(tmp_path / "timing.jsonl") == {"meta": {"seconds": 13.5, "host_memory_mb": 140}}
    assert history.costs(tmp_path / "none") == {}


def test_mined_classes_are_read_from_the_log_that_the_loop_writes(tmp_path):
    lines = [
        console.mined_line(10, np.array([0, 2, 1]), ["ant", "Georgian/10A2 Ⴂ (old), x", "bee (2)"]),
        console.mined_line(20, np.array([3, 0, 0]), ["ant", "b", "c"]),
    ]
    (tmp_path / "log.txt").write_text("".join(f"2026-01-01 INFO {line}\n" for line in lines))
    assert console.read_mined(tmp_path / "log.txt") == {
        10: {"Georgian/10A2 Ⴂ (old), x": 2, "bee (2)": 1},
        20: {"ant": 3},
    }
    assert console.read_mined(tmp_path / "none") == {}


def test_the_report_of_a_run(tiny_run, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "a <run> & more"
    shutil.copytree(tiny_run, run)
    with (run / "log.txt").open("a") as log:
        log.write("x hard tasks after step 2: 2 failure classes: <b>ant</b> (2), bee (1)\n")
    assert report_main.main(["", str(run), "--num_tasks=20"]) == 0
    result = evaluate(measure.settings_of(run, {"num_tasks": 20}, None), str(run))
    headline = f"{100 * result['accuracy']:.2f} ± {100 * result['ci95']:.2f} % (chance 20 %)"
    assert headline in capsys.readouterr().out
    text = (run / "report" / "index.html").read_text()
    page = Page(text)
    words = " ".join(page.words)
    sections = ("Learning curves", "Inner loop", "Tasks", "Classes", "Episodes", "Features", "Mined classes",
                "Time and memory", "How to get this again")  # fmt: skip
    commands = ("python -m mtl_jax.report", f"python evaluate.py {shlex.quote(f'--workdir={run}')} --split=test")
    values = (
        headline,
        "Report of a <run> & more: conv4 (width 0.25) on glyphs",
        "Pre-training only: ",
        result["episodes"],
        "backbone.width",
        "MB (host)",
    )
    for said in (*sections, *commands, *values):
        assert said in words, said
    assert "Warnings" not in words
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links) and not ADDRESS.search(text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    _check_pictures(page, run / "report")


def test_the_report_has_what_was_told_while_the_run_was_trained(tiny_run, tmp_path):  # noqa: F811
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert history.warnings(Workdir(run)) == [] == history.warnings(Workdir(tmp_path))
    for phase in ("meta", "pretrain"):
        saved = Checkpoints(run / phase).read()
        saved.metadata["health"]["told"] = {"head": f"{phase}: the head <has> not moved"}
        Checkpoints(run / phase).save(saved.step, saved.items, saved.metadata)
    assert report_main.main(["", str(run), "--num_tasks=4"]) == 0
    words = " ".join(Page((run / "report" / "index.html").read_text()).words)
    assert "Warnings pretrain: the head <has> not moved meta: the head <has> not moved" in words


def test_the_baseline_is_the_network_before_meta_training_on_the_same_tasks(tiny_run):  # noqa: F811
    settings = measure.settings_of(tiny_run, {"num_tasks": 20}, None)
    tested = measure.measure(settings, tiny_run)
    config_before = measure.settings_of(tiny_run, {"num_tasks": 20}, None)
    config_before.meta.learn = "none"  # of the same workdir: the pre-trained network, with a head from zero
    before = measure.measure(config_before, tiny_run)
    np.testing.assert_array_equal(tested.baseline, before.answers)
    assert before.baseline is None and before.baseline_accuracies is None
    assert tested.chance == 0.2 and tested.backbone == "conv4 (width 0.25)"
    np.testing.assert_allclose(tested.baseline_accuracies, before.accuracies)


def test_without_the_pre_trained_network_the_report_has_no_baseline(tiny_run, tmp_path, caplog):  # noqa: F811
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "pretrain")
    assert measure.measure(measure.settings_of(run, {"num_tasks": 4}, None), run).baseline is None
    assert "no baseline of pre-training alone: " in caplog.text


def _scalars(scores, intervals, training):
    """Validation after 100, 200, ... steps, and training accuracy in between."""
    steps = 100 * np.arange(1, len(scores) + 1)
    return {
        "meta/val_accuracy": (steps, np.array(scores)), "meta/val_ci95": (steps, np.array(intervals)),
        "meta/accuracy": (steps - 50, np.array(training)),
    }  # fmt: skip


def test_overfitting_is_validation_that_falls_by_more_than_its_intervals_while_training_rises():
    line = history.overfitting(_scalars([0.5, 0.6, 0.55], [0.01] * 3, [0.5, 0.6, 0.7]), "meta")
    assert line == (
        "meta-training overfitted: validation fell from 60.00 ± 1.00 % at step 200 to 55.00 ± 1.00 % at step 300, "
        "while training accuracy rose from 60.00 % to 70.00 %. Try fewer config.meta.steps or a larger "
        f"config.meta.weight_decay. {history.RULE}"
    )
    assert not history.overfitting(_scalars([0.5, 0.6, 0.55], [0.03] * 3, [0.5, 0.6, 0.7]), "meta")  # within noise
    assert not history.overfitting(_scalars([0.5, 0.6, 0.55], [0.01] * 3, [0.5, 0.6, 0.6]), "meta")  # training too
    assert not history.overfitting(_scalars([0.5, 0.55, 0.6], [0.01] * 3, [0.5, 0.6, 0.7]), "meta")
    assert not history.overfitting({}, "meta")


def test_the_report_warns_of_overfitting_once_and_says_the_rule(tiny_run, tmp_path):  # noqa: F811
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [
        {"step": step, "meta/accuracy": accuracy, "meta/val_accuracy": score, "meta/val_ci95": 0.01}
        for step, accuracy, score in ((2, 0.5, 0.6), (4, 0.7, 0.5))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (warning,) = history.warnings(Workdir(run))
    assert warning.startswith("meta-training overfitted: ") and warning.endswith(history.RULE)
    saved = Checkpoints(run / "meta").read()
    saved.metadata["health"]["told"] = {"falling": "meta step 4: validation has fallen"}
    Checkpoints(run / "meta").save(saved.step, saved.items, saved.metadata)
    assert history.warnings(Workdir(run)) == [f"meta step 4: validation has fallen. {history.RULE_IN_TRAINING}"]


@pytest.mark.parametrize("count", [5, 100, 300])
def test_the_confusion_matrix_of_any_size_has_every_cell_once_and_names_its_classes(count):
    rng = np.random.default_rng(count)
    met = np.where(rng.random((count, count)) < 0.6, 20, 0)
    np.fill_diagonal(met, 40)
    answered = rng.integers(0, 21, (count, count)) * (met > 0)
    answered[0, 1], met[0, 1], met[0, 2] = 0, 20, 0
    names = [f"class <{i}>" for i in range(count)]
    page = Page(confusion.figure(answered, met, names))
    assert {"svg", "script", "output"} <= set(page.tags) and page.links == []
    data = json.loads(next(words for words in page.words if words.startswith("{")))
    assert data["names"] == names and data["cells"]["1"] == [0, 20] and "2" not in data["cells"]
    assert len(data["cells"]) == np.count_nonzero(met)
    assert (names[-1] in page.words) == (count <= 100)  # on the axes; of more classes the pointer alone names them
    squares = [
        (int(x) // data["cell"], int(y) // data["cell"], int(width) // data["cell"])
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v", confusion.figure(answered, met, names))
    ]
    drawn = np.zeros((count, count), int)
    for x, y, width in squares:
        drawn[y, x : x + width] += 1
    np.testing.assert_array_equal(drawn, met > 0)  # what never met is left to the hatching


def _check_pictures(page, folder):
    assert page.tags.count("img") == page.tags.count("source") == len(list(folder.glob("*.png"))) > 8
    sizes = []
    for link in page.links:
        if link.startswith("data:"):
            with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as picture:
                picture.verify()
                sizes.append(picture.size)
    assert len(sizes) == 2 * page.tags.count("img")
    assert sizes[::2] == sizes[1::2]  # each in its two themes


def test_every_picture_has_words_for_those_who_do_not_see_it():
    alt = html.picture(html.Picture("x", b"", b"", 'accuracy of "a" & b'))
    assert 'alt="accuracy of &quot;a&quot; &amp; b"' in alt


def test_a_run_without_metrics_and_timing_still_has_a_report(tiny_run, tmp_path):  # noqa: F811
    run = tmp_path / "bare"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("*.jsonl", "log.txt", "report", "evaluation"))
    report.report(str(run), tmp_path / "page", {"num_tasks": 4, "way": 3, "query": 2})
    words = " ".join(Page((tmp_path / "page" / "index.html").read_text()).words)
    assert "metrics.jsonl: cannot be read" in words and "zero head" in words and "Mined classes" not in words


def test_a_comparison_of_runs(tiny_run, other_tiny_run, tmp_path, capsys):  # noqa: F811
    same = tmp_path / "same"
    shutil.copytree(tiny_run, same)
    paths = [str(tiny_run), str(same), str(other_tiny_run)]
    assert report_main.main(["", *paths, f"--output={tmp_path / 'page'}", "--num_tasks=12"]) == 0
    printed = capsys.readouterr().out
    assert f"{same} - {tiny_run}: +0.00 ± 0.00 points; ahead in 0 tasks, behind in 0, equal in 12" in printed
    first, other = (evaluate(measure.settings_of(p, {"num_tasks": 12}, None), p) for p in (paths[0], paths[2]))
    difference = 100 * (other["accuracy"] - first["accuracy"])
    assert re.search(re.escape(f"{paths[2]} - {paths[0]}: {difference:+.2f} ± ") + r"[1-9]", printed)
    page = Page((tmp_path / "page" / "index.html").read_text())
    words = " ".join(page.words)
    assert page.tags.count("img") == 4 and first["episodes"] in words and "pre-training only, %" in words
    assert "Comparison of 3 runs: conv4 (width 0.25) on glyphs" in words and "(chance 20 %)" in words
    assert (tmp_path / "page" / "scatter_3.png").is_file()


def test_other_protocols_are_refused(tiny_run, tmp_path):  # noqa: F811
    def variant(name, *change):
        path = tmp_path / name
        shutil.copytree(tiny_run, path)
        settings = json.loads((path / "config.json").read_text())
        group, key, value = change
        settings[group][key] = value
        (path / "config.json").write_text(json.dumps(settings))
        return str(path)

    def refused(path, message):
        with pytest.raises(ConfigError, match=message):
            report.compare([str(tiny_run), path], tmp_path / "page", {})
        assert not (tmp_path / "page").exists()

    refused(variant("shot", "evaluate", "shot", 3), "cannot be compared: shot is 1 and 3; give --shot")
    refused(variant("split", "evaluate", "split", "val"), "split is 'test' and 'val'")
    refused(
        variant("bn", "meta", "batch_norm", "batch"), "batch_norm is 'running' and 'batch'; under 'batch' the queries"
    )
    refused(variant("flips", "evaluate", "flips", True), "flips is False and True")
    refused(str(tiny_run), "the same run twice")


def test_differences_by_hand():
    accuracies = {"a": np.array([0.5, 0.6, 0.7, 0.8]), "b": np.array([0.6, 0.6, 0.8, 0.7])}
    (found,) = comparison.differences(accuracies)
    assert (found.first, found.second, found.wins, found.losses, found.ties) == ("a", "b", 2, 1, 1)
    np.testing.assert_allclose(found.difference.mean, 0.025)
    np.testing.assert_allclose(found.difference.ci95, 1.96 * np.std([0.1, 0, 0.1, -0.1]) / 2)


def test_what_may_differ_between_runs_does_not_stand_in_the_way():
    facts = dict.fromkeys(comparison.SAME, 1)
    comparison.check_same({"a": {**facts, "inner_steps": 5, "checkpoint_step": 3}, "b": {**facts, "inner_steps": 9}})
    for key in comparison.SAME:
        with pytest.raises(ConfigError, match=f"{key} is 1 and 2"):
            comparison.check_same({"a": facts, "c": facts, "b": {**facts, key: 2}})


def test_the_demo_ends_with_the_path_of_a_report(tiny_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    shutil.copytree(tiny_run, tmp_path / "1shot")
    monkeypatch.setattr(demo, "train_all", lambda path, seed: {shot: tiny_config(shot) for shot in demo.SHOTS})
    monkeypatch.setattr(demo, "test", lambda *given: {})
    monkeypatch.setattr(demo, "table", lambda results: ("| table |", []))
    assert demo.main(["", f"--workdir={tmp_path}"]) == 0
    page = tmp_path / "1shot" / "report" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {page}" and page.is_file()


def test_mistakes_are_one_line(tiny_run, tmp_path, capsys):  # noqa: F811
    assert report_main.main(["", str(tmp_path)]) == 2
    assert report_main.main(["", str(tiny_run), "--split=nowhere"]) == 2
    assert report_main.main(["", str(tiny_run), "--num_tasks=0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlError, match="cannot be made"):
        report.report(str(tiny_run), tmp_path / "file" / "page", {"num_tasks": 2})


def test_the_config_stands_there_by_dotted_names(tiny_run):  # noqa: F811
    rows = dict(html.dotted(config.to_json(config.read(Workdir(tiny_run).config))))
    assert rows["backbone.width"] == 0.25 and rows["seed"] == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says it twice")
def test_memory_is_what_the_kernel_says():
    kib = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    assert environment.memory_peaks()["host_memory_mb"] == pytest.approx(int(kib) * 1024 / 1e6, rel=0.05)
