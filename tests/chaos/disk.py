"""A disk that fills up while a run saves: a tmpfs of a few MB in a mount namespace, or a limit on a file's size.

python -m tests.chaos.disk FOLDER COUNT SEED, which `fill` starts in a namespace of its own.
"""

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.kills import finish
from tests.chaos.runs import LIMIT, ROOT, STEPS, Position, Run, Setting, end, newest, position

_SIZE = 16 << 20  # of the small file system
_NAMESPACE = ("unshare", "-rm")


def fill(folder: Path, count: int, seed: int) -> dict[str, tuple[int, int]]:
    """Fills the disk `count` times; survived: status 2, a line with what to do, whole checkpoints, the right end."""
    can_mount = shutil.which("unshare") and not subprocess.run([*_NAMESPACE, "true"], check=False).returncode
    command = [sys.executable, "-m", "tests.chaos.disk", str(folder), str(count), str(seed)]
    with subprocess.Popen(
        [*(_NAMESPACE if can_mount else ()), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            said, wrong = process.communicate(timeout=(count + 2) * LIMIT)
        except subprocess.TimeoutExpired as error:
            process.terminate()  # by which it ends its own run
            raise AssertionError(f"no end of the full disks in {(count + 2) * LIMIT} s") from error
    print(said, end="", flush=True)
    if process.returncode:
        raise AssertionError(f"the harness failed:\n{wrong}")
    kind, survived = said.splitlines()[-1].rsplit(" ", 1)
    return {kind: (count, int(survived))}


def main(folder: Path, count: int, seed: int) -> None:
    """Runs on a small disk."""
    setting, rng = Setting(folder), random.Random(seed)
    place = folder / "small"
    place.mkdir()
    size = f"size={_SIZE}"
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(place)], check=False).returncode
    workdir, survived = place / "run", 0
    for target in sorted(rng.sample(range(2, 2 * STEPS - 8, 7), count)):
        survived += _fills_up(setting, workdir, Position(*divmod(target, STEPS)), rng, mounted)
    same = finish(setting, workdir, end(folder / "untouched"))
    print(f"disk full ({'a tmpfs' if mounted else 'RLIMIT_FSIZE'}) {survived if same else 0}")


def _fills_up(setting: Setting, workdir: Path, target: Position, rng: random.Random, mounted: bool) -> bool:
    """Leaves a part of a checkpoint's size free at a moment of the run, and judges how it ends."""
    run, ballast = Run(setting, workdir), workdir.with_name("ballast")
    if not run.until(lambda: position(workdir)[:2] >= target[:2]):
        raise AssertionError(f"the run ended before its disk was full:\n{run.said()}")
    part = rng.randrange(20_000, 150_000)
    if mounted:
        # The run writes meanwhile: where it was quicker, the disk is full already.
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            file.write(bytes(max(0, shutil.disk_usage(workdir).free - part)))
    else:
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (part, part))
    status = run.wait()
    lines, (saved, whole) = run.said().strip().splitlines(), newest(workdir)
    ballast.unlink(missing_ok=True)
    said = lines[-1].startswith("error: ") and "free space" in lines[-1] and "rerun" in lines[-1]
    good = status == 2 and said and whole and "Traceback" not in run.said()
    print(f"disk full: {part} bytes left, status {status}, saved {saved[:2]}: {lines[-1]}", flush=True)
    if not good:
        print(run.said())
    return good


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    finally:
        Run.end_all()
