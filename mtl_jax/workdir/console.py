"""What a person watches: the progress of a phase, and the log of a run on the console and in a file."""

import collections
import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from mtl_jax.words import counted
from mtl_jax.workdir.workdir import writing

_logger = logging.getLogger(__name__)
MEAN_STEPS = 100  # over which progress means loss and accuracy: a single step of a few tasks says little
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """The progress of a phase, with loss, accuracy, rate and time left; `update` is a `writers.Writer`.

    Loss and accuracy are means of the last `MEAN_STEPS` steps.

    On a terminal a bar; elsewhere (a file, a scheduler's log) a log line every `interval` seconds and one at the end.

    Example:
      with Progress(steps, initial=step, description='meta-training', per_step=4) as bar:
          bar.update(step, {'loss': 0.7, 'accuracy': 0.8})
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "",
        *,
        unit: str = "tasks",
        per_step: int = 1,
        chance: float = 0.0,
        interval: float = 15.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Counts steps from `initial` to `total`, each of `per_step` units (tasks, images).

        `chance` is the accuracy of guessing, shown beside the accuracy where it is not 0.
        """
        self._total, self._description, self._unit, self._per_step = total, description, unit, per_step
        self._interval, self._clock = interval, clock
        self._step = self._printed = self._first_step = initial
        self._first: float | None = None  # time of the first update, which compiling delays
        self._next = 0.0  # and of the next line
        stream = stream or sys.stderr
        self._bar = None
        if stream.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc=description, bar_format=_BAR, file=stream, dynamic_ncols=True
            )
        self._chance = f" (chance {100 * chance:.3g} %)" if chance else ""
        self._recent: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()

    def update(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Says that `step` steps are done; the scalars named loss and accuracy (also 'meta/loss') are shown."""
        now = self._clock()
        if self._first is None:
            self._first, self._first_step, self._next = now, step, now + self._interval
        advanced, self._step = step - self._step, step
        self._recent.append((max(advanced, 1), scalars))
        while sum(steps for steps, _ in self._recent) - self._recent[0][0] >= MEAN_STEPS:
            self._recent.popleft()
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._facts(now)), refresh=False)
            self._bar.update(advanced)
        elif now >= self._next:
            self._print(now)

    def close(self) -> None:
        """Leaves the bar, or the last line, as it is at the end."""
        if self._bar is not None:
            self._bar.close()
        elif self._step != self._printed:
            self._print(self._clock())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, now: float) -> None:
        facts = [f"{self._description} {self._step}/{self._total}".strip(), *self._facts(now)]
        if rate := self._rate(now):
            facts.append(f"{duration((self._total - self._step) / rate)} left")
        _logger.info("%s", ", ".join(facts))
        self._printed, self._next = self._step, now + self._interval

    def _facts(self, now: float) -> list[str]:
        loss, accuracy = self._mean("loss"), self._mean("accuracy")
        facts = [] if loss is None else [f"mean loss {loss:.3f}"]
        facts += [] if accuracy is None else [f"mean accuracy {100 * accuracy:.1f} %{self._chance}"]
        if rate := self._rate(now):
            facts.append(f"{rate * self._per_step:.3g} {self._unit}/s")
        return facts

    def _mean(self, wanted: str) -> float | None:
        """The mean of a scalar over the recent steps, or None where they have none of that name."""
        seen = [
            (steps, float(value)) for steps, scalars in self._recent for name, value in scalars.items()
            if name.rsplit("/", 1)[-1] == wanted
        ]  # fmt: skip
        return sum(steps * value for steps, value in seen) / sum(steps for steps, _ in seen) if seen else None

    def _rate(self, now: float) -> float:
        steps, seconds = self._step - self._first_step, now - (now if self._first is None else self._first)
        return steps / seconds if seconds > 0 else 0.0


def duration(seconds: float) -> str:
    """'12 s', '34 min' or '5.6 h'."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)  # a plain print would tear a progress bar


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not print a traceback for each line; whoever writes results there says so."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # nor end a run in an error
            super().close()


@contextlib.contextmanager
def shown(level: int = logging.INFO) -> Iterator[None]:
    """Shows what mtl_jax logs on the console, while it is open. Inside another one it only sets the level."""
    logger = logging.getLogger("mtl_jax")
    before = logger.level, logger.propagate
    console = None if any(isinstance(handler, _Console) for handler in logger.handlers) else _Console()
    if console:
        console.setFormatter(_ConsoleFormatter())
        logger.addHandler(console)
    logger.setLevel(level)
    logger.propagate = False  # absl's root handler would print every line a second time
    try:
        yield
    finally:
        if console:
            logger.removeHandler(console)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextlib.contextmanager
def log_to(path: str | Path, *, level: int = logging.INFO) -> Iterator[None]:
    """As `shown`, and appends each line to a text file, with time and level.

    Raises:
      MtlError: the file cannot be written.
    """
    with writing(Path(path), "give another --workdir"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = _File(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("mtl_jax")
    with shown(level):
        logger.addHandler(file)
        try:
            yield
        finally:
            logger.removeHandler(file)
            file.close()


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {line}"


_NAMED = 10  # mined classes named in a line
_MINED = re.compile(r"hard tasks after step (\d+): \d+ failure class(?:es)?: (.*)")
_MINED_CLASS = re.compile(r"(.+?) \((\d+)\)(?:, |$)")


def mined_line(step: int, pool: np.ndarray, names: Sequence[str]) -> str:
    """The log line of a round of hard tasks; `read_mined` reads it back.

    Args:
      step: the optimiser step before the round.
      pool: int [classes], how often each class was a failure class.
      names: of the classes.
    """
    order = np.argsort(-pool, kind="stable")[: np.count_nonzero(pool)]
    listed = ", ".join(f"{names[i]} ({pool[i]})" for i in order[:_NAMED])
    more = f", and {len(order) - _NAMED} more" if len(order) > _NAMED else ""
    return f"hard tasks after step {step}: {counted(len(order), 'failure class')}: {listed}{more}"


def read_mined(log: Path) -> dict[int, dict[str, int]]:
    """The failure classes that a log names, by step, with their counts. A step that ran twice counts once."""
    if not log.exists():
        return {}
    by_step = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _MINED.search(line):
            by_step[int(match[1])] = {name: int(count) for name, count in _MINED_CLASS.findall(match[2])}
    return by_step
