"""An embedding as StableHLO: exported, checked, written, loaded."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mtl_jax import __version__
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.export.embedding import Embedding
from mtl_jax.export.fold import fold_batch_norm
from mtl_jax.workdir import write_bytes_atomic, write_json_atomic

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # of the largest feature, or of 1 where that is larger
CHECKED_BATCH = 3
FACTS = ("sha256", "fingerprint", "image_shape", "resize", "features")


class Exported:
    """An exported embedding: called with stored images, uint8 [B, H, W, C], it gives float32 [B, F].

    facts: what its JSON file holds.
    """

    def __init__(self, exported: jax_export.Exported, facts: dict[str, Any]) -> None:
        self.facts = facts
        self._call = exported.call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._call(images))

    @property
    def fingerprint(self) -> str:
        """That of the embedding it was made from; their features are equal to `TOLERANCE`."""
        return self.facts["fingerprint"]

    @property
    def transform(self) -> Transform:
        """How any image is brought to what it takes."""
        height, _, channels = self.facts["image_shape"]
        return Transform(height, self.facts["resize"], channels, convert=True)

    def __deepcopy__(self, memo: Any) -> "Exported":
        return self  # nothing in it changes; scikit-learn's clone copies parameters deeply


def folded(embed: Embedding) -> Callable[[jax.Array], jax.Array]:
    """The embedding as one function of stored images without SS, BN or state.

    It computes in float32, also where accelerators would by default multiply less precisely.
    """
    module = embed.embed.module
    module = module.clone(options=dataclasses.replace(module.options, dtype=None))
    module, params = fold_batch_norm(module, embed.params, embed.batch_stats)
    prepare = embed.embed.prepare

    def run(images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            return module.apply({"params": params}, prepare(images), batch_statistics="running")

    return run


def export(embed: Embedding, platforms: Sequence[str] = DEFAULT_PLATFORMS) -> bytes:
    """The serialised StableHLO of an embedding, for any batch size."""
    shape = jax_export.symbolic_shape("b, " + ", ".join(map(str, embed.image_shape)))
    exporting = jax_export.export(jax.jit(folded(embed)), platforms=platforms)
    return bytes(exporting(jax.ShapeDtypeStruct(shape, np.uint8)).serialize())


def check_platforms(platforms: Sequence[str]) -> None:
    """Raises MtlError for a platform that JAX does not know, or where this machine's, on which it is tried, is not."""
    here = {"gpu": ("cuda", "rocm")}.get(jax.default_backend(), (jax.default_backend(),))
    for platform in platforms:
        if platform not in PLATFORMS:
            raise MtlError(f"--platforms: {platform!r} is unknown, expected some of {','.join(PLATFORMS)}")
    if not set(here) & set(platforms):
        found, wanted = ",".join(platforms), " or ".join(here)
        raise MtlError(f"--platforms={found}: the file is tried out here, on {jax.default_backend()}: add {wanted}")


def write(embed: Embedding, path: Path, platforms: Sequence[str] = DEFAULT_PLATFORMS) -> Exported:
    """Writes `path` and the JSON file beside it, and returns what `load` reads from them.

    Raises:
      MtlError: see `check_platforms`; they cannot be written; or they would not give the features of `embed` (a bug:
        nothing is written then).
    """
    check_platforms(platforms)
    data = export(embed, platforms)
    shape = embed.image_shape
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_BATCH, *shape), np.uint8)
    found = np.asarray(jax_export.deserialize(bytearray(data)).call(images))
    with jax.default_matmul_precision("float32"):
        expected = reference(embed)(images)
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * max(1, largest):
        raise MtlError(f"{path}: not written: its features differ by {difference:.2g} from the run's; report this bug")
    settings = embed.settings
    facts = {
        "format": "jax.export StableHLO", "sha256": hashlib.sha256(data).hexdigest(),
        "input": ["B", *shape], "input_dtype": "uint8", "image_shape": list(shape), "features": expected.shape[1],
        "resize": settings["data"]["resize"], "platforms": list(platforms), "max_difference": difference,
        "backbone": settings["backbone"]["name"], "data": settings["data"]["name"],
        "checkpoint_step": embed.step, "fingerprint": embed.fingerprint,
        "mtl_jax": __version__, "jax": jax.__version__,
    }  # fmt: skip
    try:
        write_bytes_atomic(path, data)
    except OSError as error:
        raise MtlError(f"{path}: cannot be written: {error.strerror}") from error
    write_json_atomic(facts_path(path), facts)
    return load(path)


def reference(embed: Embedding) -> Embedding:
    """The run's own embedding, computed in float32 whatever `runtime.dtype` says."""
    runtime = {**embed.settings["runtime"], "dtype": "float32"}
    return dataclasses.replace(embed, settings={**embed.settings, "runtime": runtime})


def facts_path(path: str | Path) -> Path:
    """The JSON file that belongs to an exported file."""
    return Path(path).with_suffix(".json")


def load(path: str | Path) -> Exported:
    """An exported embedding, verified by its digest.

    Raises:
      CheckpointError: the file or its JSON file is missing or damaged.
    """
    try:
        data = Path(path).read_bytes()
        facts = json.loads(facts_path(path).read_bytes())
        missing = [name for name in FACTS if name not in facts]
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}; export it again") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{facts_path(path)}: damaged ({error}); export it again") from error
    if missing:
        raise CheckpointError(f"{facts_path(path)}: has no {missing[0]}; export it again")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"{path}: is not the file that {facts_path(path).name} was written for; export it again")
    return Exported(jax_export.deserialize(bytearray(data)), facts)
