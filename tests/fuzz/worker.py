"""Reads damaged samples, one a line of stdin, and says what came of each; a process under a memory limit."""

import hashlib
import json
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.errors import MtlError
from mtl_jax.reference_weights.torch_pickle import Foreign
from tests.fuzz.samples import SAMPLES

SECONDS = 5  # of processor time for a file
MEMORY = 1 << 30  # bytes of address space beyond what the process has when it starts to read


def digest(content: Any) -> str:
    """A digest of nested dicts, sequences, arrays and scalars; raises TypeError for what is none of these."""
    state = hashlib.sha256()
    _add(state, content)
    return state.hexdigest()[:16]


def _add(state: Any, content: Any) -> None:
    if isinstance(content, Mapping):
        state.update(f"dict {len(content)}".encode())
        for key in sorted(content, key=repr):
            _add(state, key)
            _add(state, content[key])
    elif isinstance(content, list | tuple):
        state.update(f"list {len(content)}".encode())
        for item in content:
            _add(state, item)
    elif isinstance(content, Foreign):
        state.update(content.origin.encode())
    elif content is None or isinstance(content, str | bytes | int | float):
        state.update(f"{type(content).__name__} {content!r}".encode(errors="surrogatepass"))
    else:
        array = np.asarray(content)
        if array.dtype.hasobject:
            raise TypeError(f"{type(content).__name__} was read")
        state.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())


def read(name: str, folder: Path) -> dict[str, str]:
    """{'outcome': 'refused', 'accepted' or 'wrong', 'detail': a message, the content's digest, or a traceback}."""
    try:
        return {"outcome": "accepted", "detail": digest(SAMPLES[name].read(folder))}
    except MtlError as error:
        one_line = "\n" not in str(error)
        return {"outcome": "refused" if one_line else "wrong", "detail": str(error)[:300]}
    except BaseException:
        return {"outcome": "wrong", "detail": traceback.format_exc()[-1500:]}


def main() -> None:
    """Reads whole samples first, so that everything is imported; then limits the memory and answers line by line."""
    warnings.simplefilter("ignore")
    logging.disable()
    answers, sys.stdout = sys.stdout, sys.stderr
    first = True
    for line in sys.stdin:
        job = json.loads(line)
        if job["name"] == "limit" and first:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            first, answer = False, {"outcome": "accepted", "detail": ""}
        else:
            started = time.process_time()
            answer = read(job["name"], Path(job["folder"]))
            if (spent := time.process_time() - started) > SECONDS:
                answer = {"outcome": "wrong", "detail": f"{spent:.1f} s of processor time"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
