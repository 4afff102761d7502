"""What ends a program from outside: Ctrl-C, in one line and from its first moment on, and a reader that goes away.

While modules are imported there is nothing to clean up, and an exception would be printed with the import's traceback
or be lost in it: the handler ends the process. Within a program Ctrl-C is a KeyboardInterrupt, so that what was begun
is left in order. Either way the process dies of SIGINT, by which a shell knows to end a loop as well.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_BROKEN_PIPE = 141  # the status of what dies of SIGPIPE


def end_at_once() -> None:
    """From now on Ctrl-C ends the process in one line, unless somebody else handles SIGINT already."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def within_program() -> Iterator[None]:
    """Within the body Ctrl-C raises KeyboardInterrupt; where that leaves the body, the process ends in one line."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before not in (_end, signal.default_int_handler):
        yield
        return
    pressed, before_lost = False, sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def lost(args: "sys.UnraisableHookArgs") -> None:
        if pressed:  # it came while garbage was collected, where no exception leads anywhere
            end()
        before_lost(args)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = lost
    try:
        yield
    except BaseException as error:
        if pressed or isinstance(error, KeyboardInterrupt):  # compiled code makes other errors of it
            end()
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = before_lost


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Ends the program quietly where the reader of its output has gone, as in `mtl-jax data check ... | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush would fail as well
        raise SystemExit(_BROKEN_PIPE) from None


def end() -> NoReturn:
    """Ends the process in one line, as Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one must not tear the line
    with contextlib.suppress(OSError):  # the terminal may be gone; not `print`, which the signal may have interrupted
        os.write(2, f"\ninterrupted by {name(signal.SIGINT)}\n".encode())
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    os._exit(128 + signal.SIGINT)


def name(number: int) -> str:
    """'SIGTERM', or 'signal 35' where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(number: int, frame: FrameType | None) -> None:
    end()
