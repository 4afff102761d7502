"""Damages one small file of every kind that is read, at random, and counts what the readers make of it.

python -m tests.fuzz [--count=2500] [--seed=0] [--only=NAME]

Refused: the project's own error, in one line. Accepted rightly: the content is that of the whole file, byte for byte,
or the format has no check sum over what was changed and the file is a well-formed one of other content (another pixel
of an uncompressed array). Accepted wrongly: other content of a file that a digest or check sum covers. Anything else is
a failure: another exception, a crash, over 5 seconds of processor time (60 on the clock), over 1 GiB, a file outside
the scratch folder.
"""

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import MUTATIONS, made_to_harm
from tests.fuzz.samples import SAMPLES

ROOT = Path(__file__).parents[2]
SECONDS = 60  # on the clock, of a machine that may be busy; the worker itself allows 5 of processor time
COLUMNS = ("tried", "refused", "accepted, same", "accepted, other", "accepted wrongly", "failed")


class Reader:
    """A worker that is started again after it crashed or hung."""

    def __init__(self, folder: Path, originals: Path) -> None:
        self._folder, self._originals = folder, originals
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, "-m", "tests.fuzz.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=self._folder, env=environment, bufsize=1,
        )  # fmt: skip
        self.whole = {name: self.ask(name, self._originals / str(i), 300) for i, name in enumerate(SAMPLES)}
        self.ask("limit", self._folder)

    def ask(self, name: str, folder: Path, seconds: float = SECONDS) -> dict[str, str]:
        """What the worker says of a sample."""
        self._process.stdin.write(json.dumps({"name": name, "folder": str(folder)}) + "\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(seconds) else None
        if line:
            return json.loads(line)
        self._process.kill()
        status = self._process.wait()
        what = f"over {seconds} s" if line is None else f"the reader died with status {status}"
        self._start()
        return {"outcome": "wrong", "detail": what}

    def close(self) -> None:
        """Ends the worker."""
        self._process.stdin.close()
        self._process.wait()


def judge(name: str, answer: dict[str, str], whole: dict[str, str]) -> str:
    """The column that an answer counts in."""
    if answer["outcome"] != "accepted":
        return "refused" if answer["outcome"] == "refused" else "failed"
    if answer["detail"] == whole["detail"]:
        return "accepted, same"
    return "accepted wrongly" if SAMPLES[name].sealed else "accepted, other"


def fuzz(folder: Path, count: int, seed: int, names: list[str]) -> tuple[Counter, list[str]]:
    """Counts by (name, column), and what went wrong."""
    rng, counts, bad = np.random.default_rng(seed), Counter(), []
    originals, box = folder / "whole", folder / "box"
    for i, sample in enumerate(SAMPLES.values()):
        (originals / str(i)).mkdir(parents=True)
        sample.make(originals / str(i))
    box.mkdir()
    reader = Reader(box, originals)
    if broken := {name: answer for name, answer in reader.whole.items() if answer["outcome"] != "accepted"}:
        raise SystemExit(f"whole samples are refused: {broken}")

    def attempt(name: str, change: Any, label: str) -> None:
        job = box / "job"
        shutil.copytree(originals / str(list(SAMPLES).index(name)), job)
        files = sorted(path for path in job.glob(SAMPLES[name].files) if path.is_file() and path.stat().st_size)
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        after = change(before)
        if after == before:
            shutil.rmtree(job)
            return
        path.write_bytes(after)
        answer = reader.ask(name, job)
        column = judge(name, answer, reader.whole[name])
        if outside := [
            p.name for p in [*box.iterdir(), *folder.iterdir()] if p.name not in ("whole", "box", "job", "scratch")
        ]:
            column, answer = "failed", {"detail": f"written outside: {outside}"}
        counts[name, "tried"] += 1
        counts[name, column] += 1
        if column in ("failed", "accepted wrongly"):
            bad.append(f"{name}, {path.name}, {label}, {column}: {answer['detail']}")
        shutil.rmtree(job)
        shutil.rmtree(box / "scratch", ignore_errors=True)

    for name, content in made_to_harm(folder / "trap"):
        if name in names:
            attempt(name, lambda _, content=content: content, "made to harm")
    for number in range(count):
        mutation = MUTATIONS[number // len(names) % len(MUTATIONS)]
        attempt(names[number % len(names)], lambda data, m=mutation: m(rng, data), mutation.__name__)
    reader.close()
    return counts, bad


def main() -> None:
    """Prints the table, what went wrong, and a line that counts; status 1 where anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a reader's name")
    options = parser.parse_args()
    names = [options.only] if options.only else list(SAMPLES)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts, bad = fuzz(Path(folder), options.count, options.seed, names)
    print(f"{'':30}" + "".join(f"{column:>18}" for column in COLUMNS))
    for name in names:
        print(f"{name:30}" + "".join(f"{counts[name, column]:18}" for column in COLUMNS))
    for line in bad:
        print(line)
    total = {column: sum(counts[name, column] for name in names) for column in COLUMNS}
    print("fuzz: " + ", ".join(f"{column}: {value}" for column, value in total.items()))
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
