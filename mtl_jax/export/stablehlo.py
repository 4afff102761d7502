"""An embedding as a file of StableHLO: batch norm folded, exported, checked against the run, written, loaded.

After a convolution, batch norm by running averages is an affine map of each output channel:
BN(W x + b) = (W factor) x + (b - mean) factor + offset, with factor = scale / sqrt(var + epsilon).
So it can be folded into the convolution's kernel and bias. `scale_shift.apply` does the same for scale and shift.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import export as jax_export

from mtl_jax import __version__
from mtl_jax.data import transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.export.embedding import Embedding
from mtl_jax.reference_weights import Network, networks
from mtl_jax.types import Params
from mtl_jax.workdir import write_bytes_atomic, write_json_atomic, writing

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # relative to the largest feature, or to 1 if that is larger
CHECKED_BATCH = 3
FACTS = ("sha256", "fingerprint", "image_shape", "resize", "features")


class Exported:
    """An exported embedding. Called with stored images, uint8 [B, H, W, C], it returns features, float32 [B, F].

    facts: the content of its JSON file.
    """

    def __init__(self, exported: jax_export.Exported, facts: dict[str, Any]) -> None:
        self.facts = facts
        self._call = exported.call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._call(images))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the embedding it was made from; their features are equal to `TOLERANCE`."""
        return self.facts["fingerprint"]

    @property
    def transform(self) -> Transform:
        """How any image is prepared for it."""
        return transforms.of_network(self.facts, self.facts["image_shape"])

    def __deepcopy__(self, memo: Any) -> "Exported":
        return self  # immutable; scikit-learn's clone deep-copies parameters


def fold_batch_norm(module: nn.Module, params: Params, batch_stats: Params) -> tuple[nn.Module, Params]:
    """A network without batch norm that gives the same features as `module` does by its running averages.

    Args:
      module: a backbone of `create_backbone`.
      params: its parameters, with scale and shift applied.
      batch_stats: the running averages.

    Returns:
      The same backbone with norm='none' and a bias on every convolution, and its float32 parameters. If there is no
      batch norm in `module`, it is returned with its parameters.
    """
    if not hasattr(module, "options") or module.options.norm != "batch":
        return module, params
    options = dataclasses.replace(module.options, norm="none", conv_bias=True)
    return module.clone(options=options), _fold(params, batch_stats, module.options.norm_epsilon)


def _fold(params: Params, stats: Params, epsilon: float) -> Params:
    folded = {}
    for name, inner in params.items():
        if "mean" in stats.get(name, {}):
            continue  # a norm: it is folded into its convolution
        if "kernel" in inner:
            norm = norm_of(name)
            folded[name] = _fold_one(inner, params.get(norm, {}), stats.get(norm), epsilon)
        else:
            folded[name] = _fold(inner, stats.get(name, {}), epsilon)
    return folded


def norm_of(conv: str) -> str:
    """The name of the norm after a convolution, as in `backbones`: conv2 -> norm2, shortcut -> shortcut_norm."""
    return conv.replace("conv", "norm") if conv.startswith("conv") else f"{conv}_norm"


def _fold_one(conv: Params, affine: Params, stats: Mapping[str, np.ndarray] | None, epsilon: float) -> Params:
    kernel = np.asarray(conv["kernel"], np.float64)
    bias = np.asarray(conv.get("bias", np.zeros(kernel.shape[-1])), np.float64)
    if stats is not None:
        mean, var = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
        factor = np.asarray(affine.get("scale", 1.0), np.float64) / np.sqrt(var + epsilon)
        kernel = kernel * factor
        bias = (bias - mean) * factor + np.asarray(affine.get("bias", 0.0), np.float64)
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def folded(embed: Embedding | Network) -> Callable[[jax.Array], jax.Array]:
    """The embedding as one stateless function of stored images, with scale and shift and batch norm folded.

    It computes in float32 even on accelerators that multiply less precisely by default.
    """
    module = embed.embed.module
    if hasattr(module, "options"):
        module = module.clone(options=dataclasses.replace(module.options, dtype=None))
    folded_module, params = fold_batch_norm(module, embed.params, embed.batch_stats)
    stats = embed.batch_stats if folded_module is module else {}
    network = embed.embed._replace(module=folded_module)

    def run(images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            return network(params, stats, images)[0]

    return run


def export(embed: Embedding | Network, platforms: Sequence[str] = DEFAULT_PLATFORMS) -> bytes:
    """The serialised StableHLO of an embedding, for any batch size."""
    shape = jax_export.symbolic_shape("b, " + ", ".join(map(str, embed.image_shape)))
    exporting = jax_export.export(jax.jit(folded(embed)), platforms=platforms)
    return bytes(exporting(jax.ShapeDtypeStruct(shape, np.uint8)).serialize())


def check_platforms(platforms: Sequence[str]) -> None:
    """Raises MtlError for an unknown platform, or if this machine's is missing: the file is tested here."""
    here = {"gpu": ("cuda", "rocm")}.get(jax.default_backend(), (jax.default_backend(),))
    for platform in platforms:
        if platform not in PLATFORMS:
            raise MtlError(f"--platforms: {platform!r} is unknown, expected some of {','.join(PLATFORMS)}")
    if not set(here) & set(platforms):
        listed, needed = ",".join(platforms), " or ".join(here)
        raise MtlError(f"--platforms={listed}: the file is tested here, on {jax.default_backend()}: add {needed}")


def write(embed: Embedding | Network, path: Path, platforms: Sequence[str] = DEFAULT_PLATFORMS) -> Exported:
    """Writes `path` and the JSON file beside it, and returns them as `load` does.

    Raises:
      MtlError: see `check_platforms`; a file cannot be written; or the features differ from those of `embed` (a bug:
        then nothing is written).
    """
    check_platforms(platforms)
    data = export(embed, platforms)
    facts = {"format": "jax.export StableHLO", "platforms": list(platforms)}
    write_checked(embed, path, data, jax_export.deserialize(bytearray(data)).call, facts)
    return load(path)


def write_checked(
    embed: Embedding | Network, path: Path, data: bytes, function: Callable[[np.ndarray], Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes an exported embedding and its JSON file, whose content it returns, if its features are those of `embed`.

    Args:
      embed: what was exported.
      path: of the file.
      data: its content.
      function: what the content computes: stored images -> features.
      facts: more for the JSON file.

    Raises:
      MtlError: a file cannot be written, or the features differ (a bug: then nothing is written).
    """
    shape = embed.image_shape
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_BATCH, *shape), np.uint8)
    features = np.asarray(function(images))
    with jax.default_matmul_precision("float32"):
        expected = reference(embed)(images)
    difference, largest = float(np.abs(features - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * max(1, largest):
        raise MtlError(
            f"{path}: not written: its features differ by {difference:.2g} from the network's; report this bug"
        )
    facts = {
        **facts, "sha256": hashlib.sha256(data).hexdigest(),
        "input": ["B", *shape], "input_dtype": "uint8", "image_shape": list(shape), "features": expected.shape[1],
        "resize": embed.transform.resize, "interpolation": embed.transform.interpolation,
        "max_difference": difference, **_origin(embed), "fingerprint": embed.fingerprint,
        "mtl_jax": __version__, "jax": jax.__version__,
    }  # fmt: skip
    with writing(path):
        write_bytes_atomic(path, data)
    write_json_atomic(facts_path(path), facts)
    return facts


def _origin(embed: Embedding | Network) -> dict[str, Any]:
    if isinstance(embed, Network):
        return {"backbone": networks.named(embed.module)[0]}
    settings = embed.settings
    return {
        "backbone": settings["backbone"]["name"], "data": settings["data"]["name"], "checkpoint_step": embed.step,
    }  # fmt: skip


def reference(embed: Embedding | Network) -> Embedding | Network:
    """The embedding itself, computed in float32 whatever a run's `runtime.dtype` is."""
    if isinstance(embed, Network):
        return embed
    runtime = {**embed.settings["runtime"], "dtype": "float32"}
    return dataclasses.replace(embed, settings={**embed.settings, "runtime": runtime})


def facts_path(path: str | Path) -> Path:
    """The JSON file beside an exported file: embedding.json, or embedding.onnx.json."""
    path = Path(path)
    return path.with_name(path.name + ".json") if path.suffix == ".onnx" else path.with_suffix(".json")


def load(path: str | Path) -> Exported:
    """Reads an exported embedding and verifies its digest.

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
    if facts.get("format") == "ONNX":
        raise CheckpointError(f"{path}: is ONNX, and only StableHLO can be loaded; export it again as StableHLO")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"{path}: is not the file that {facts_path(path).name} was written for; export it again")
    return Exported(jax_export.deserialize(bytearray(data)), facts)
