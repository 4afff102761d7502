"""The checkpoints of a run: saved whole or not at all, verified when read, kept by count, the best one always."""

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mtl_jax.errors import CheckpointError, first_line
from mtl_jax.workdir import checkpoint_folder, manifest, named_arrays
from mtl_jax.workdir.manifest import seal, unseal
from mtl_jax.workdir.workdir import read_bounded, sync_folder, write_bytes_atomic, writing

PyTree = Any

_logger = logging.getLogger(__name__)
_STEP = re.compile(r"0|[1-9]\d{0,17}")
_LEFTOVER = re.compile(r"(\d+)\.(tmp|old)(\..*)?")
_MAX_BEST_BYTES = 1 << 20


class Restored(NamedTuple):
    """A verified checkpoint: its step, its trees by item, and the metadata that was saved with them."""

    step: int
    items: dict[str, PyTree]
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one phase: `directory/STEP/` with a folder an item and manifest.json, and best.json.

    Each item is an Orbax checkpoint of its own (`ocp.PyTreeCheckpointer().restore(directory / 'STEP' / 'params')` reads
    it without this package). One process writes, while any number may read. In a run of several processes the first one
    writes: in the others `save`, `mark_best` and `remove_unfinished` do nothing. A resumed run starts from the
    metadata, so all that decides how it resumes belongs there (step, best score so far, writers' positions); best.json
    only tells readers which checkpoint is the best.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        """Owns `directory`, which need not exist. Keeps the `keep` newest checkpoints, and the best one."""
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must be kept")
        self.directory = Path(directory).absolute()
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in order, damaged ones included."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if _STEP.fullmatch(path.name))

    def save(self, step: int, items: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> None:
        """Saves trees of arrays and a JSON-able `metadata` as checkpoint `step`, on disk when this returns.

        Everything is written under a temporary name, flushed, and published by one rename. So a kill at any moment
        leaves this checkpoint whole or absent, and the earlier ones as they were. Then all but the newest `keep` and
        the best are deleted, and so are later steps, which a run that went back has left behind.

        Raises:
          CheckpointError: it could not be written (disk full, say); only this checkpoint is lost.
          ValueError, TypeError: this cannot be saved: an item's name that is not an identifier, a tree with such leaves
            (see `named_arrays.flatten`), metadata that is not JSON.
        """
        if jax.process_index():
            return
        if wrong := [item for item in items if not item.isidentifier()]:
            raise ValueError(f"an item's name must be an identifier: {wrong[0]!r}")
        arrays = {item: named_arrays.flatten(tree) for item, tree in items.items()}
        seal(metadata)  # raises if it is not JSON: the caller's mistake, not the disk's
        folder = self.directory / f"{step}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.remove_unfinished()
            checkpoint_folder.write(folder, step, arrays, metadata)
            self._publish(folder, step)
        except Exception as error:  # TensorStore and Orbax have many
            raise CheckpointError(self._save_failed(step, error)) from error
        finally:
            self.remove_unfinished()
        self._prune(step)

    def read(self, step: int | None = None) -> Restored:
        """A verified checkpoint as plain nested dicts of NumPy arrays, without a template.

        Without `step` it is the newest whole one, with a warning for each newer one that is damaged.

        Raises:
          CheckpointError: there is none, or this one is damaged; the message names the file, item or array.
        """
        if step is not None:
            return self._read(step)
        for candidate in reversed(self.steps()):
            try:
                return self._read(candidate)
            except CheckpointError as error:
                _logger.warning("%s; going back to an older checkpoint", error)
        if self.steps():
            raise CheckpointError(
                f"{self.directory}: every checkpoint is damaged (see the warnings above); restore one from a backup,"
                " or delete the folder to restart the phase"
            )
        raise CheckpointError(f"{self.directory}: no checkpoint there; give the workdir of a run that has saved one")

    def newest_metadata(self) -> dict[str, Any]:
        """The metadata of the newest checkpoint whose manifest is whole; empty if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                return manifest.read(self.directory / str(step)).metadata
        return {}

    def selected(self, select: str) -> Restored:
        """`read` of the best checkpoint where `select` is 'best' and one is marked, else of the newest whole one."""
        best = self.best() if select == "best" else None
        return self.read(best["step"] if best else None)

    def restore(self, like: Mapping[str, PyTree], step: int | None = None) -> Restored:
        """`read`, with the trees in the structure of `like`: dicts, NamedTuples, optax states.

        Only the items of `like` are returned.

        Raises:
          CheckpointError: as `read`; or a tree differs from `like`, with what is missing, surplus or of another shape.
        """
        saved = self.read(step)
        folder = self.directory / str(saved.step)
        if missing := sorted(like.keys() - saved.items.keys()):
            known = ", ".join(sorted(saved.items))
            raise CheckpointError(f"{folder}: has no item {', '.join(missing)}; it has {known}")
        items = {item: named_arrays.fit(tree, saved.items[item], f"{folder / item}") for item, tree in like.items()}
        return saved._replace(items=items)

    def mark_best(self, step: int, score: float, **extra: Any) -> None:
        """Names a saved checkpoint in best.json; it is kept until another one is the best."""
        if jax.process_index():
            return
        if step not in self.steps():
            raise ValueError(f"checkpoint {step} must be saved before it can be the best one")
        path = self.directory / "best.json"
        with writing(path, "free some space", CheckpointError):
            write_bytes_atomic(path, seal({"step": step, "score": score, **extra}))

    def best(self) -> dict[str, Any] | None:
        """What `mark_best` wrote: step, score, extra; None before the first. Raises CheckpointError where damaged."""
        path = self.directory / "best.json"
        try:
            best = unseal(read_bounded(path, _MAX_BEST_BYTES))
            return {**best, "step": int(best["step"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged: {error}; delete it, the next validation rewrites it") from error

    def remove_unfinished(self) -> None:
        """Removes what killed saves have left; for the one process that writes, at its start."""
        if jax.process_index() or not self.directory.is_dir():
            return
        for path in sorted(self.directory.iterdir()):
            if match := _LEFTOVER.fullmatch(path.name):
                final = self.directory / match[1]
                if match[2] == "old" and not final.exists():
                    os.replace(path, final)  # killed between the two renames of `_publish`
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _read(self, step: int) -> Restored:
        folder = self.directory / str(step)
        if not folder.is_dir():
            raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; there are: {self._listed_steps()}")
        saved_step, items, metadata = checkpoint_folder.read(folder)
        if saved_step != step:
            raise CheckpointError(f"{folder}: damaged checkpoint: it belongs to step {saved_step}")
        return Restored(step, items, metadata)

    def _publish(self, folder: Path, step: int) -> None:
        final, old = self.directory / str(step), self.directory / f"{step}.old"
        if final.exists():
            os.replace(final, old)
        os.replace(folder, final)
        sync_folder(self.directory)

    def _prune(self, step: int) -> None:
        try:
            best = self.best()
        except CheckpointError as error:
            _logger.warning("%s; no checkpoint is deleted, since any may be the best", error)
            return
        kept = {*[s for s in self.steps() if s <= step][-self._keep :], best and best["step"]}
        for old in set(self.steps()) - kept:
            # Renamed first: a kill halfway through the deletion must not leave a damaged checkpoint.
            doomed = self.directory / f"{old}.tmp"
            os.replace(self.directory / str(old), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _save_failed(self, step: int, error: Exception) -> str:
        cause, advice = first_line(error).rstrip("."), "fix the cause"
        if _is_full(error):
            free = shutil.disk_usage(self.directory).free if self.directory.is_dir() else 0
            cause, advice = f"no space left ({free / 1e6:.1f} MB free)", "free space there"
        return (
            f"{self.directory / str(step)}: checkpoint not saved: {cause}. Earlier checkpoints are intact "
            f"({self._listed_steps()}): {advice} and rerun the command to resume"
        )

    def _listed_steps(self) -> str:
        return ", ".join(map(str, self.steps())) or "none"


def _is_full(error: BaseException) -> bool:
    numbers = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
    # TensorStore gives the system's message in a ValueError's text.
    return getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers)
