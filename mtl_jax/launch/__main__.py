"""Starts several processes of a program on this machine, watches them, and stops all if one fails.

python -m mtl_jax.launch --num_processes=2 -- train.py --config=configs/glyphs.py --workdir=runs/glyphs
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, TextIO

from mtl_jax.errors import ConfigError
from mtl_jax.launch import interrupts, program
from mtl_jax.launch.signals import EXIT_GO_ON_LATER

_GRACE_SECONDS = 3  # for the others to end by themselves once one has died


def launch(command: Sequence[str], count: int, devices_per_process: int = 0) -> int:
    """Runs `python *command` in `count` processes that find each other by its flags, until all have ended.

    SIGTERM and SIGINT are passed on, once. Where a process dies, the others are ended, and a line says so.

    Args:
      command: the program's words, as after `python`.
      count: how many processes.
      devices_per_process: how many accelerators each process sees, the first process the first ones; 0: each sees all.

    Returns:
      0, the first status that is not, or 128 and the signal that a process died of.
    """
    address = f"127.0.0.1:{free_port()}"
    words = [sys.executable, *command, f"--coordinator_address={address}", f"--num_processes={count}"]
    children = [_start(words, number, devices_per_process) for number in range(count)]
    relays = [
        threading.Thread(target=relay, args=(number, child.stderr), daemon=True)
        for number, child in enumerate(children) if child.stderr
    ]  # fmt: skip
    for thread in relays:
        thread.start()
    try:
        with _passing_on(children) as passed:
            return _watch(children, passed)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for thread in relays:
            thread.join(_GRACE_SECONDS)  # not for ever: what a process has started may outlive it


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(words: Sequence[str], number: int, devices: int) -> subprocess.Popen:
    environment = dict(os.environ)
    if devices:
        ids = range(number * devices, (number + 1) * devices)
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, ids))
    return subprocess.Popen(
        [*words, f"--process_id={number}"], env=environment,
        # Ctrl-C reaches the launcher alone, which passes it on; only the first process draws a progress bar.
        start_new_session=True, stderr=subprocess.PIPE if number else None,
    )  # fmt: skip


def relay(number: int, lines: IO[bytes], to: TextIO | None = None) -> None:
    """Writes each line that is not blank to `to` (standard error), after the number of the process that said it."""
    to = to or sys.stderr
    with lines:
        for line in filter(bytes.strip, lines):
            to.write(f"[{number}] {line.decode(errors='replace')}")
            to.flush()


@contextlib.contextmanager
def _passing_on(children: Sequence[subprocess.Popen]) -> Iterator[set[int]]:
    passed = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.add(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen], passed: set[int]) -> int:
    """Waits for all children, or for one to fail; of a signal that was passed on they may die without another word."""
    while True:
        codes = [child.poll() for child in children]
        for number, code in enumerate(codes):
            if code not in (None, 0, EXIT_GO_ON_LATER):
                _end_others(children, number, code, quiet=-code in passed)
                return code if code > 0 else 128 - code
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            return max(ended)
        time.sleep(0.1)


def _end_others(children: Sequence[subprocess.Popen], number: int, code: int, quiet: bool) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(0.1)
    if quiet:
        return
    ended = sum(child.poll() is None for child in children)
    ending = f"was killed by {interrupts.name(-code)}" if code < 0 else f"ended with status {code}"
    advice = "" if code == program.EXIT_USER_ERROR else ". Rerun the command to resume from the last checkpoint"
    print(
        f"error: process {number} of {len(children)} {ending}; the others were stopped"
        f"{f' ({ended} by force)' if ended else ''}{advice}",
        file=sys.stderr,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The program."""
    parser = program.Parser("python -m mtl_jax.launch", description=__doc__)
    parser.add_argument("--num_processes", type=_at_least(1), default=2, help="how many processes")
    parser.add_argument(
        "--devices_per_process", type=_at_least(0), default=0, help="accelerators that each process sees; 0: all"
    )
    end = argv.index("--") if "--" in argv else len(argv)
    values, command = parser.parse_args(argv[1:end]), argv[end + 1 :]
    if not command:
        raise ConfigError("nothing to run; write python -m mtl_jax.launch --num_processes=2 -- train.py --config=...")
    return launch(command, values.num_processes, values.devices_per_process)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not re.fullmatch(r"\d{1,6}", word) or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r}, expected a whole number, {least} or more")
        return int(word)

    return parse


if __name__ == "__main__":
    sys.exit(program.run(main))
