"""A process that does one side of a row's work when told to, so that memory is measured by side and row.

The parent and the worker speak JSON lines: {"do": "run", "case": ...} -> {"seconds": ..., "amount": ...}. XLA's options
are set before anything imports JAX. What the work prints goes to the worker's log.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import accelerator

ROOT = Path(__file__).parent.parent
QUEUED = 20


class Measured(NamedTuple):
    """One repeat: seconds, and how many units of work they took."""

    seconds: float
    amount: float = 1.0


class Work(NamedTuple):
    """One side of a row.

    cases: what is timed, by name; each call is one repeat. numbers: results that both sides must agree on, by name.
    warm: done once before the first repeat; None: each case once. facts: what the result's file says besides.
    """

    cases: Mapping[str, Callable[[], Measured]]
    numbers: Callable[[], dict[str, np.ndarray]] = dict
    warm: Callable[[], Any] | None = None
    facts: Mapping[str, Any] = {}


def timed(function: Callable[[], Any], amount: float = 1.0) -> Measured:
    """The time of one call, which must return only when its work is done."""
    start = time.perf_counter()
    function()
    return Measured(time.perf_counter() - start, amount)


def queued(step: Callable[[], Any], wait: Callable[[], Any], on_cpu: bool) -> Measured:
    """One repeat: a step on a CPU, QUEUED on an accelerator, which takes them from the host without waiting."""
    count = 1 if on_cpu else QUEUED

    def run() -> None:
        for _ in range(count):
            step()
        wait()

    return timed(run, count)


class Shared:
    """A measurement that several cases are made of: `shared(case)` measures anew when a case asks a second time."""

    def __init__(self, measure: Callable[[], Any]) -> None:
        self._measure, self._asked, self._found = measure, set(), None

    def __call__(self, case: str) -> Any:
        if case in self._asked or not self._asked:
            self._asked, self._found = set(), self._measure()
        self._asked.add(case)
        return self._found


class WorkerError(RuntimeError):
    """A worker died; the message has the end of its log."""


class Worker:
    """The parent's end: `ask` sends one request and waits for the answer.

    Args:
      side: 'module:function' of this package, called as `function(row, folder, quick)`; gives a `Work`.
      row: the row's letter.
      folder: where both sides leave their files; the log is `SIDE.log` in it.
      quick: tiny sizes.
    """

    def __init__(self, side: str, row: str, folder: Path, quick: bool) -> None:
        self._log = folder / f"{side.replace(':', '-')}.log"
        command = [sys.executable, "-m", "benchmarks.worker", side, row, str(folder), str(int(quick))]
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # both sides are on one accelerator
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment
            )
        self._read()  # ready

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises WorkerError where no answer comes."""
        with contextlib.suppress(BrokenPipeError):  # the answer's absence says what happened
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self.close()
            status = self._process.returncode
            ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise WorkerError(f"{self._log}: {ended}: {self._log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process; of one that has ended, nothing is said."""
        with contextlib.suppress(BrokenPipeError):  # what a dead process never read
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def prepare(side: str, row: str, folder: Path, quick: bool) -> Work:
    """The work of a row's side, 'module:function' of this package."""
    module, function = side.split(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(row, folder, quick)


def peak_memory() -> int:
    """The most resident memory of this process, or of the largest that it has waited for, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def serve(work: Work, folder: Path, name: str, answer: Callable[[Any], None]) -> None:
    """Answers requests from standard input until it ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "numbers":
            with accelerator.exact():
                np.savez(folder / f"{name}-numbers.npz", **work.numbers())
            answer({})
        elif request["do"] == "warm":
            start = time.perf_counter()
            for call in [work.warm] if work.warm else work.cases.values():
                call()
            answer({"seconds": time.perf_counter() - start})
        elif request["do"] == "run":
            answer(work.cases[request["case"]]()._asdict())
        elif request["do"] == "facts":
            answer({**work.facts, "peak_bytes": accelerator.peak_memory() or peak_memory()})


def main(argv: list[str]) -> None:
    """SIDE ROW FOLDER QUICK."""
    side, row, folder, quick = argv
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints go to the log
    from mtl_jax.launch import environment

    environment.configure_xla()
    environment.keep_freed_memory()  # the rival's memory, too
    work = prepare(side, row, Path(folder), quick == "1")

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({"ready": True})
    serve(work, Path(folder), side.replace(":", "-"), answer)


if __name__ == "__main__":
    main(sys.argv[1:])
