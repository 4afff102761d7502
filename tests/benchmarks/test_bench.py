"""The benchmark's machinery: both sides of a row compute the same; figures are formatted and compared."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import accelerator, adaptation, communication, meta_step, pretrain_step, profile, run, table
from benchmarks.exchange import Exchange
from benchmarks.rows import Case, groups
from benchmarks.worker import QUEUED, Measured, Shared, Worker, WorkerError, queued

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results.json"


def result(**changes):
    """A line of a result's file."""
    facts = {
        "row": "a", "what": "a step", "seconds": 2.0, "peak_bytes": 3e9, "flops": 1e9, "fraction": 0.25,
        "against": "PyTorch", "rival_seconds": 3.0, "ratio": 1.5, "rival_peak_bytes": 4e9, "rival_setting": "2 threads",
    }  # fmt: skip
    return {**facts, **changes}


def results(*rows):
    """A result's file."""
    machine = {
        "processor": "P", "cores": 2, "memory_bytes": 24e9, "system": "Linux", "python": "3.11",
        "versions": {"jax": "1"}, "commit": "abc",
    }  # fmt: skip
    return {
        "machine": machine, "quick": False, "matmul_flops_per_second": 1.2e11, "rows": rows, "total_seconds": 600.0
    }  # fmt: skip


def test_a_line_has_both_times_their_ratio_and_the_fraction_of_the_limit():
    assert "| a | a step | 2 s | PyTorch | 3 s | 1.5 | 25 % | 3.00 GB / 4.00 GB |" in table.markdown(results(result()))


def test_a_line_without_a_rival_is_no_comparison():
    alone = {k: v for k, v in result().items() if k in ("row", "what", "seconds", "peak_bytes")}
    assert "| a | a step | 2 s |  |  |  |  | 3.00 GB |" in table.markdown(results(alone))


def test_a_row_that_failed_is_a_line_that_says_so():
    assert "| b | a step | failed |" in table.markdown(results({"row": "b", "what": "a step", "error": "nan"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.5e-5, "25 µs"), (0.0456, "45.6 ms"), (12.34, "12.3 s"), (599, "599 s"), (1200, "20 min"), (36_000, "10 h")],
)
def test_times_have_three_digits_and_a_unit(value, text):
    assert table.seconds(value) == text


@pytest.mark.parametrize("markers", [(table.BEGIN, table.END), table.SUMMARY])
def test_a_page_keeps_what_is_outside_the_markers(tmp_path, monkeypatch, markers):
    monkeypatch.setattr(table, "markdown", lambda results: "| table |")
    monkeypatch.setattr(table, "summary", lambda results: "three sentences")
    page, new = tmp_path / "page.md", "| table |" if markers[0] == table.BEGIN else "three sentences"
    page.write_text(f"before\n{markers[0]}\nold\n{markers[1]}\nafter\n", encoding="utf-8")
    table.insert(page, {})
    assert table.carried(page, markers) == new
    assert page.read_text(encoding="utf-8") == f"before\n{markers[0]}\n{new}\n{markers[1]}\nafter\n"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(table.PageError, match=r"page\.md"):
        table.insert(page, {})


def test_pages_carry_what_was_measured():
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert table.carried(ROOT / "docs/performance.md") == table.markdown(measured)
    assert table.carried(ROOT / "README.md", table.SUMMARY) == table.summary(measured)
    assert table.BEGIN not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_summary_has_each_rows_range():
    ready = {"row": "e", "what": "10,000 test tasks, once the features are there", "seconds": 1.75, "peak_bytes": 1}
    ratios = {"a": [0.6], "b": [0.57], "c": [0.744], "d": [71.4, 17.9], "e": [33.9, 41.7]}
    rows = [
        result(row=row, ratio=ratio, what="600 test tasks", seconds=34.2)
        for row, each in ratios.items()
        for ratio in each
    ]
    text = table.summary(results(*rows, ready))
    for part in (
        "On 2 CPU cores",
        "1.8 s",
        "take 34 s; PyTorch takes 34 to 42 times",
        "18 to 71 times",
        "at 0.57 to 0.74 times",
    ):
        assert part in text, part


def test_every_row_of_the_help_exists():
    assert list(groups(quick=False)) == list("abcdefgh")
    assert list(groups(quick=True)) == list("abcdefgh")


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit):
        program.main(["--rows=a,z"])
    assert "unknown rows z" in capsys.readouterr().err


def test_differences_over_the_limit_are_refused():
    ours = {"loss": np.float32(1), "ss/conv/scale": np.ones(3), "ss/conv/shift": np.ones(1)}
    assert run.differences(ours, {**ours, "ss/conv/shift": np.zeros(1)}) == {"loss": 0, "ss": 0}  # BN cancels it
    with pytest.raises(run.DisagreementError, match="loss"):
        run.differences(ours, {**ours, "loss": np.float32(1.001)})
    with pytest.raises(run.DisagreementError, match="loss"):
        run.differences({**ours, "loss": np.float32(np.nan)}, ours)
    with pytest.raises(run.DisagreementError, match="only one side has loss"):
        run.differences({"ss/a": np.ones(1)}, {"ss/a": np.ones(1), "loss": np.ones(1)})


class Sides:
    """A worker whose repeats are a list."""

    def __init__(self, *repeats):
        self.repeats = list(repeats)

    def ask(self, **request):
        return self.repeats.pop(0)._asdict()


def test_a_repeat_is_scaled_to_the_amount_and_the_median_taken():
    case = Case("tasks", "600", "1", "PyTorch ({rival_amount} tasks)", per=600)
    ours = Sides(*(Measured(s, 600) for s in (3.0, 1.0, 2.0)))
    rival = Sides(*(Measured(s, 6) for s in (9.0, 10.0, 11.0)))
    group = groups(quick=True)["a"]._replace(cases=(case,))
    ((times, rival_times),) = run._repeats("e", group, [ours, rival], False, print)
    found = run._result(case, times, rival_times, {"peak_bytes": 1, "flops": {"600": 5}}, {"peak_bytes": 2})
    assert (found["seconds"], found["rival_seconds"], found["ratio"]) == (2.0, 1000.0, 500.0)
    assert found["against"] == "PyTorch (6 tasks)"
    assert found["flops"] == 5


@pytest.mark.parametrize(
    ("row", "ours"), [*(pytest.param(row, meta_step, marks=pytest.mark.slow) for row in "ab"), ("d", adaptation)]
)
def test_the_rival_computes_the_same(row, ours, tmp_path):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_adaptation, torch_meta_step

    rival = {"a": torch_meta_step, "b": torch_meta_step, "d": torch_adaptation}[row]
    threads = torch.get_num_threads()
    mine = ours.prepare(row, tmp_path, True)
    theirs = rival.prepare(row, tmp_path, True)
    found = run.differences(mine.numbers(), theirs.numbers())
    torch.set_num_threads(threads)
    assert found
    if row == "d":
        assert mine.facts["flops"][""] > 4 * 2 * 25 * 25 * 5 * 10  # tasks, S S N operations a step


def test_sums_are_made_within_hosts_and_then_among_them():
    rates = communication.Rates(flops=1e12, least=0, inside=1e9, between=1e8, near=1e-6, far=1e-5, each=8)
    sent = Exchange(bytes=1_000_000, rounds=3)
    assert communication.all_reduce_seconds(sent, 1, rates) == 0
    within = 2 * 7 / 8 * 1e-3 + 3 * 2 * 3 * 1e-6
    np.testing.assert_allclose(communication.all_reduce_seconds(sent, 8, rates), within)
    among = 2 * 3 / 4 * 1e-2 + 3 * 2 * 2 * 1e-5
    np.testing.assert_allclose(communication.all_reduce_seconds(sent, 32, rates), within + among)
    phase = communication.Phase("", "", flops=1e9, parts={}, sent=sent)
    np.testing.assert_allclose(communication.efficiency(phase, 8, rates), 1e-3 / (1e-3 + within))


def test_pieces_are_the_same_however_they_are_written(capsys):
    from benchmarks import pieces

    pieces.main(((6, 5, 3),))
    assert capsys.readouterr().out.count("| 6 x 5 x 5 x 3 |") == 5


def test_what_cases_share_is_measured_again_when_a_case_asks_again():
    counts = iter(range(10))
    shared = Shared(lambda: next(counts))
    assert [shared(case) for case in ("a", "b", "b", "a", "c", "a")] == [0, 0, 1, 1, 1, 2]


def test_an_accelerators_repeat_is_many_steps_and_one_wait():
    done = []
    steps = queued(lambda: done.append("step"), lambda: done.append("wait"), on_cpu=False)
    assert done == ["step"] * QUEUED + ["wait"] and steps.amount == QUEUED
    done.clear()
    assert queued(lambda: done.append("step"), lambda: done.append("wait"), on_cpu=True).amount == 1
    assert done == ["step", "wait"]


def test_sides_are_compared_in_float32_and_timed_as_they_were():
    torch = pytest.importorskip("torch")
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    with accelerator.exact():
        assert not any(switch.allow_tf32 for switch in switches)
    assert [switch.allow_tf32 for switch in switches] == before


def test_the_table_says_what_is_not_float32_at_the_rows_own_size():
    found = results(result())
    found["machine"] |= {"accelerator": "GPU", "dtype": "bfloat16", "times": 8}
    assert "bfloat16. Rows a, b and c with 8 times the tasks or images. GPU; P, 2 cores" in table.markdown(found)


def test_only_the_whole_run_at_its_own_size_is_kept(monkeypatch, tmp_path, capsys):
    kept = []
    monkeypatch.setattr(run, "run", lambda rows, **options: results(*(result(row=row) for row in rows)))
    monkeypatch.setattr(run, "write", lambda found, path: kept.append(path))
    monkeypatch.setenv(accelerator.DTYPE, "float32")
    monkeypatch.setenv(accelerator.TIMES, "1")
    for argv in (["--quick"], ["--rows=a"], ["--dtype=bfloat16"], ["--times=8"]):
        assert program.main(argv) == 0
    assert not kept
    assert program.main(["--times=8", f"--output={tmp_path / 'x8.json'}"]) == 0
    assert program.main([]) == 0
    assert kept == [tmp_path / "x8.json", RESULTS]


def test_a_worker_that_is_killed_says_so_and_can_be_closed(tmp_path):
    worker = Worker("adaptation:prepare", "d", tmp_path, quick=True)
    worker._process.send_signal(signal.SIGKILL)
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        worker.ask(do="facts")
    worker.close()


def test_a_batch_can_be_made_larger(monkeypatch):
    monkeypatch.setenv(accelerator.TIMES, "3")
    assert meta_step.config("b", True).meta.tasks_per_step == 6
    assert pretrain_step.config(True).pretrain.batch_size == 24


def test_a_profile_adds_up_kernels_by_kind():
    def event(name, operation, microseconds):
        return SimpleNamespace(name=name, stats=[("hlo_op", operation)], duration_ns=1e3 * microseconds)

    stream = SimpleNamespace(name="Stream #1", events=[
        event("sm90_dgrad", "cudnn-conv-bw-input.3", 20), event("sm90_fprop", "cudnn-conv.1", 40),
        event("sm90_fprop", "cudnn-conv.1", 40), event("loop_add_fusion", "command_buffer_2", 6),
    ])  # fmt: skip
    host = SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(name="Stream", events=[event("x", "y", 1)])])
    gpu = SimpleNamespace(
        name="/device:GPU:0", lines=[stream, SimpleNamespace(name="Steps", events=[event("0", "", 99)])]
    )
    kinds, names = profile.report(profile.kernels([host, gpu]), steps=2).split("\n\n")
    assert kinds.splitlines()[2:] == [
        "| convolutions | 1 | 0.040 |",
        "| convolutions, gradient by the images | 0.5 | 0.010 |",
        "| passes over maps and the rest | 0.5 | 0.003 |",
    ]
    assert names.splitlines()[2] == "| cudnn-conv.1 sm90_fprop | 1 | 0.040 |"


def test_a_profile_without_a_gpu_says_so(capsys):
    assert profile.main(["--row=d", "--quick"]) == 1
    out, err = capsys.readouterr()
    assert "ms a step" in out
    assert "needs a GPU" in err
