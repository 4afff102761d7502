"""Gathers images from a memory map on the host, ahead of the step that needs them."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

_END = object()


class Prefetch:
    """Iterates over `(indices, images[indices])` while a thread gathers the next ones.

    The thread also iterates over `batches`, which may be a generator that computes them. An error in it is raised from
    the iteration, after all that was gathered before. A context manager; `close` ends the thread at once, and can be
    called at any time and more than once.

    Example:
        with Prefetch(split.images, (sample(key, step) for step in range(steps))) as batches:
            for indices, images in batches:
                ...

    Args:
        images: [M, ...], usually a memory map.
        batches: arrays of positions in `images`, of any shape, or trees of them (tuples, lists, dicts); the images have
            the same structure.
        ahead: how many gathered batches wait at most, while one more is being gathered.
    """

    def __init__(self, images: np.ndarray, batches: Iterable[Any], *, ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"ahead: {ahead}; at least one batch must be able to wait")
        # A plain view: indexing a memmap would return memmaps of arrays in memory.
        self._images = np.asarray(images).view(np.ndarray)
        self._ready: queue.Queue = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(iter(batches),), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, batches: Iterator[Any]) -> None:
        try:
            for indices in batches:
                if not self._put((indices, gather(self._images, indices), None)):
                    return
            self._put((None, _END, None))
        except BaseException as error:  # the consumer must see it, whatever it is
            self._put((None, _END, error))
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _put(self, item: tuple) -> bool:
        """Waits for a free place in the queue; returns False once the consumer has closed."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> tuple[Any, Any]:
        if self._closed.is_set():
            raise StopIteration
        indices, images, error = self._ready.get()
        if images is not _END:
            return indices, images
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Ends the thread and drops what it has gathered."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        while not self._ready.empty():
            self._ready.get_nowait()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Ahead:
    """Gathers the images of a loop's dispatches, by a thread that starts with the first one asked for.

    A dispatch that does not follow the one before (a resumed run, a repeated step) starts another thread.

    Args:
        images: see `Prefetch`.
        batches: (first step) -> batches as `Prefetch` takes them, one for each dispatch from that step on.
        steps: the number of steps in a dispatch.
    """

    def __init__(self, images: np.ndarray, batches: Callable[[int], Iterable[Any]], *, steps: int = 1) -> None:
        self._images, self._batches, self._steps = images, batches, steps
        self._thread: Prefetch | None = None
        self._next = -1

    def get(self, step: int) -> tuple[Any, Any]:
        """Returns (positions, images) of the dispatch that begins with `step`."""
        if step != self._next or self._thread is None:
            self.close()
            self._thread = Prefetch(self._images, self._batches(step))
        self._next = step + self._steps
        return next(self._thread)

    def close(self) -> None:
        """Ends the thread; `get` may start another."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


def gather(images: np.ndarray, indices: Any) -> Any:
    """Returns a copy of `images[indices]`, for an array of positions or each array in a tree of them."""
    if isinstance(indices, dict):
        return {key: gather(images, value) for key, value in indices.items()}
    if isinstance(indices, tuple | list):
        parts = [gather(images, part) for part in indices]
        # The constructor of a named tuple takes its parts one by one.
        return type(indices)(*parts) if hasattr(indices, "_fields") else type(indices)(parts)
    return np.take(images, np.asarray(indices), axis=0)
