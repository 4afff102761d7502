"""SIGKILL at moments of each kind, and SIGTERM and SIGINT, in runs that are started again until they are done."""

import random
import signal
import time

from tests.chaos.runs import STEPS, VALIDATE, Position, Run, Setting, end, is_saving, is_validating, newest, position

KINDS = ("SIGKILL in pre-training", "SIGKILL in meta-training", "SIGKILL in validation", "SIGKILL while saving")
_LIVES = 40  # runs at most; a kind that is missed is tried again in another
_AT_ONCE = 5  # kills of one run
_SECONDS = 10  # from a signal to the exit


def sigkill(setting: Setting, expected: dict, quotas: dict[str, int], seed: int) -> dict[str, tuple[int, int]]:
    """Kills runs until every kind has been hit as often as `quotas` says; (tried, survived) by kind.

    What was hit is decided by what the dead run has left, not by what was aimed at. A kill is survived where all that
    is left is whole, and the run that it was part of ends as expected.
    """
    rng, hit, survived = random.Random(seed), dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for life in range(_LIVES):
        wanted = [kind for kind in KINDS for _ in range(quotas[kind] - hit[kind])]
        if not wanted:
            break
        found, same = _life(setting, f"kill{life}", rng.sample(wanted, min(_AT_ONCE, len(wanted))), rng, expected)
        for kind, whole in found:
            hit[kind] += 1
            survived[kind] += whole and same
    missed = [kind for kind in KINDS if hit[kind] < quotas[kind]]
    if missed:
        raise AssertionError(f"not hit often enough: {missed}")
    return {kind: (hit[kind], survived[kind]) for kind in KINDS}


def _life(setting: Setting, name: str, kinds: list[str], rng: random.Random, expected: dict):
    """One run, killed where `kinds` say: its kills as (kind, all is whole), and whether it ends as expected."""
    workdir, found = setting.folder / name, []
    for target, kind in sorted((_target(kind, rng), kind) for kind in kinds):
        run = Run(setting, workdir)
        if not run.until(lambda target=target, kind=kind: _is_moment(workdir, target, kind)):
            break  # it came to its end first
        time.sleep(rng.uniform(0, {KINDS[2]: 0.2, KINDS[3]: 0.03}.get(kind, 0.01)))
        run.send(signal.SIGKILL)
        if run.wait() != -signal.SIGKILL:
            break
        found.append((_what_was_hit(workdir), newest(workdir)[1]))
        print(f"{name}: {found[-1][0]} at {position(workdir)}", flush=True)
    return found, finish(setting, workdir, expected)


def _target(kind: str, rng: random.Random) -> Position:
    phase = {KINDS[0]: 0, KINDS[1]: 1}.get(kind, rng.randrange(2))
    return Position(phase, VALIDATE * rng.randrange(1, 3) if kind == KINDS[2] else rng.randrange(1, STEPS))


def _is_moment(workdir, target: Position, kind: str) -> bool:
    if position(workdir)[:2] < target[:2]:
        return False
    if kind in KINDS[2:]:
        return {KINDS[2]: is_validating, KINDS[3]: is_saving}[kind](workdir)
    return not (is_validating(workdir) or is_saving(workdir))


def _what_was_hit(workdir) -> str:
    if is_saving(workdir):
        return KINDS[3]
    return KINDS[2] if is_validating(workdir) else KINDS[position(workdir).phase]


def finish(setting: Setting, workdir, expected: dict) -> bool:
    """Starts a run again and says whether it ends as expected."""
    run = Run(setting, workdir)
    if run.wait():
        print(f"{workdir.name}: failed when started again:\n{run.said()}")
        return False
    found = end(workdir)
    if differ := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
        print(f"{workdir.name}: differs from the untouched run: {', '.join(sorted(differ))}")
    return not differ


def stop(setting: Setting, expected: dict, count: int, seed: int) -> dict[str, tuple[int, int]]:
    """Stops a run `count` times by each signal; survived: status 75, in time, saved at the last step that was done."""
    rng, counts = random.Random(seed), {}
    for number in (signal.SIGTERM, signal.SIGINT):
        workdir, good, tried, slowest = setting.folder / number.name, 0, 0, 0.0
        # Eight steps apart at least: the step that the signal came in is done before the next target.
        targets = sorted(rng.sample(range(1, 2 * STEPS - 4, 7), count))
        for target in targets:
            run = Run(setting, workdir)
            goal = Position(*divmod(target, STEPS))
            if not run.until(lambda goal=goal, workdir=workdir: position(workdir)[:2] >= goal[:2]):
                break
            asked = time.monotonic()
            run.send(number)
            status, seconds = run.wait(), time.monotonic() - asked
            tried, slowest = tried + 1, max(slowest, seconds)
            saved, done = newest(workdir), position(workdir)
            well = status == 75 and seconds < _SECONDS and saved == (Position(*done[:2]), True)
            good += well
            if not well:
                print(f"{number.name}: status {status} after {seconds:.1f} s, saved {saved}, done {done}\n{run.said()}")
        same = finish(setting, workdir, expected)
        counts[f"{number.name} (slowest {slowest:.1f} s)"] = (tried, good if same else 0)
    return counts
