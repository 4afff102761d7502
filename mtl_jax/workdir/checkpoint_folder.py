"""The folder of one checkpoint: arrays by Orbax, a folder an item, and the manifest by which all of it is verified."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mtl_jax.errors import CheckpointError, first_line
from mtl_jax.workdir import manifest as manifests
from mtl_jax.workdir import named_arrays
from mtl_jax.workdir.manifest import ArrayRecord, Manifest
from mtl_jax.workdir.workdir import sync_folder, write_bytes_atomic

Arrays = Mapping[str, np.ndarray]  # by path in the tree, see named_arrays.flatten


def write(folder: Path, step: int, items: Mapping[str, Arrays], metadata: Mapping[str, Any]) -> None:
    """Writes items of named arrays and the manifest into a new folder, and waits until the disk has them."""
    # Orbax refuses arrays without elements; the manifest's shape and dtype say all there is to them.
    stored = {item: {name: array for name, array in arrays.items() if array.size} for item, arrays in items.items()}
    trees = {item: named_arrays.nest(arrays) for item, arrays in stored.items() if arrays}
    if trees:
        with _one_error():
            _write_arrays(folder, trees)
    else:
        folder.mkdir()
    records = {item: {name: manifests.record_array(a) for name, a in arrays.items()} for item, arrays in items.items()}
    manifest = Manifest(step, dict(metadata), records, manifests.record_files(folder))
    write_bytes_atomic(folder / manifests.FILE, manifests.to_bytes(manifest))
    _sync(folder)


def read(folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The step, the items as nested dicts of NumPy arrays, and the metadata of a checkpoint.

    Raises:
      CheckpointError: a byte of it is not what `write` wrote; names the file, item or array.
    """
    manifest = manifests.read(folder)
    manifests.check_files(folder, manifest.files)
    items = {item: _read_item(folder / item, records) for item, records in manifest.arrays.items()}
    return manifest.step, items, manifest.metadata


def _read_item(folder: Path, records: Mapping[str, ArrayRecord]) -> dict[str, Any]:
    shapes = {name: record.shape for name, record in records.items() if 0 not in record.shape}
    try:
        arrays = _read_arrays(folder, shapes) if shapes else {}
        arrays |= {name: np.zeros(r.shape, r.dtype) for name, r in records.items() if name not in shapes}
    except Exception as error:  # whatever Orbax and TensorStore make of files that are not theirs
        raise CheckpointError(f"{folder}: damaged checkpoint: {first_line(error)}") from error
    manifests.check_arrays(folder, arrays, records)
    return named_arrays.nest(arrays)


def _read_arrays(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    handler = _handler()
    with ocp.Checkpointer(handler, multiprocessing_options=_this_process()) as checkpointer:
        # The shapes first: the manifest bounds the memory that reading may take, Orbax's own files do not.
        stored = named_arrays.by_name(handler.metadata(epath.Path(folder)).tree)
        for name, leaf in stored.items():
            if tuple(leaf.shape) != shapes.get(name):
                raise ValueError(f"array {name} has shape {tuple(leaf.shape)}, {shapes.get(name)} was saved")
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), named_arrays.nest(stored))
        return named_arrays.flatten(checkpointer.restore(folder, ocp.args.PyTreeRestore(restore_args=restore_args)))


def _write_arrays(folder: Path, trees: Mapping[str, Any]) -> None:
    options = ocp.CompositeOptions(multiprocessing_options=_this_process())
    handler = ocp.CompositeCheckpointHandler(composite_options=options, **{item: _handler() for item in trees})
    with ocp.Checkpointer(handler, multiprocessing_options=_this_process()) as checkpointer:
        args = {item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()}
        checkpointer.save(folder, args=ocp.args.Composite(**args))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Drops the tracebacks that threads of Orbax and TensorStore print beside the one error that a failed save raises.

    After a failure this stays so: the writes given up may still be ending.
    """
    hook = sys.unraisablehook

    def without_orphans(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            hook(unraisable)

    logging.getLogger("absl").addFilter(_is_not_of_a_thread)
    sys.unraisablehook = without_orphans
    try:
        yield
    except Exception:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would log each of the writes given up
        raise
    sys.unraisablehook = hook


def _is_not_of_a_thread(record: logging.LogRecord) -> bool:
    return "_SignalingThread.run() raised an exception" not in str(record.msg)


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Trained weights shrink by 8 %, which is not worth the time of compressing them.
    return ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=_this_process())


def _this_process() -> ocp.options.MultiprocessingOptions:
    # In a run of several hosts one of them saves what all of them hold: nobody is to be waited for.
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))
