import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from mtl_jax.launch.signals import EXIT_GO_ON_LATER, stop_on_signal

RUN = """
    import sys, time
    from mtl_jax.launch.signals import EXIT_GO_ON_LATER, stop_on_signal
    with stop_on_signal() as stop:
        print("started", flush=True)
        while not stop or "deaf" in sys.argv:
            time.sleep(0.01)
        print("saved", flush=True)
    sys.exit(EXIT_GO_ON_LATER)
"""


def _run(*arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "started\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_the_status_says_go_on_later(number):
    child = _run()
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (75, "saved\n")
    assert EXIT_GO_ON_LATER == os.EX_TEMPFAIL
    assert f"{number.name}: stopping" in err and "Traceback" not in err


def test_a_second_interrupt_aborts_where_the_first_is_not_heard():
    child = _run("deaf")
    child.send_signal(signal.SIGINT)
    assert "SIGINT" in child.stderr.readline() + child.stderr.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert child.returncode not in (0, EXIT_GO_ON_LATER)


def test_a_second_sigterm_changes_nothing_and_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert capfd.readouterr().err.count("stopping after this dispatch") == 1


def test_outside_the_main_thread_no_handler_is_touched():
    seen = []

    def run():
        with stop_on_signal() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]
