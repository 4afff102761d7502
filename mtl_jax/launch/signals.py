"""Stops a run so that it can go on later: SIGTERM and SIGINT are noted, and read at the end of a dispatch."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from mtl_jax.launch import interrupts

EXIT_GO_ON_LATER = 75
"""Exit status of a run that was asked to stop, saved, and can be started again: EX_TEMPFAIL of sysexits.h."""


class Stopped(Exception):
    """A signal asked the run to stop; it was saved and resumes when started again."""


class StopRequest:
    """False until a signal asks the run to stop; `signal` is then that signal's number."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signal(
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[StopRequest]:
    """Notes the signals instead of dying of them; the former handlers are back afterwards.

    The first one sets the request, which the loop reads at the end of each dispatch. A further SIGINT (somebody presses
    Ctrl-C again) raises KeyboardInterrupt at once; a further SIGTERM changes nothing, since launchers repeat it.
    Outside the main thread no handler can be set: the request then stays False.

    Example:
      with stop_on_signal() as stop:
          while step < steps and not stop:
              state = train_step(state)
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request:
            request.signal = number
            _say(f"{interrupts.name(number)}: stopping after this dispatch and saving (Ctrl-C again aborts)")

    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _say(line: str) -> None:
    # Straight to the descriptor: this handler may interrupt a print or a log line halfway.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
