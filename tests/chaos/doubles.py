"""Two runs on one workdir, and locks that dead processes have left."""

import os
import signal

from tests.chaos.kills import finish
from tests.chaos.runs import Run, Setting, position


def lock(setting: Setting, expected: dict, count: int) -> dict[str, tuple[int, int]]:
    """A second run is refused `count` times while the first is held still; then `count` stale locks are passed over."""
    workdir = setting.folder / "lock"
    first = Run(setting, workdir)
    first.until(lambda: position(workdir).step > 0)
    first.send(signal.SIGSTOP)  # it keeps the lock, and is where it was when the others have tried
    refused = sum(_is_refused(setting, workdir, first.pid) for _ in range(count))
    first.send(signal.SIGCONT)
    whole = first.wait() == 0 and finish(setting, workdir, expected)
    stale = sum(_passes_stale_lock(setting, f"stale{number}", expected) for number in range(count))
    return {"second run refused": (count, refused if whole else 0), "stale lock passed": (count, stale)}


def _is_refused(setting: Setting, workdir, holder: int) -> bool:
    # What a run writes to stderr has the workdir's name: the first one's must stay.
    second = Run(setting, workdir)
    refused = second.wait() == 2
    last = second.said().strip().splitlines()[-1]
    return refused and f"in use by process {holder} " in last and "Traceback" not in second.said()


def _passes_stale_lock(setting: Setting, name: str, expected: dict) -> bool:
    """A killed run's lock, which names a process that lives: this one, as if the number had been given out again."""
    workdir = setting.folder / name
    run = Run(setting, workdir)
    run.until(lambda: position(workdir).step > 0)
    run.send(signal.SIGKILL)
    run.wait()
    (workdir / ".lock").write_text(f"process {os.getpid()} on this host since long ago\n")
    return finish(setting, workdir, expected)
