"""An embedding as an ONNX file, for programs without JAX. jax2onnx converts it, ONNX Runtime checks it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mtl_jax import layers
from mtl_jax.errors import MtlError, first_line
from mtl_jax.export import stablehlo
from mtl_jax.export.embedding import Embedding
from mtl_jax.reference_weights import Network

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "features"


def export(embed: Embedding | Network) -> bytes:
    """The ONNX model of an embedding, for any batch size. Raises MtlError without jax2onnx, or where that fails."""
    to_onnx = _installed()[0].to_onnx
    shape = jax_export.symbolic_shape("b, " + ", ".join(map(str, embed.image_shape)))
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    with layers.plain_form(), warnings.catch_warnings():  # in plain form, a layer becomes one node
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64")  # jax2onnx looks for types in this way
        try:
            model = to_onnx(stablehlo.folded(embed), [images], input_names=[INPUT], output_names=[OUTPUT])
        except Exception as error:  # it has no error of its own, and a backbone may be anybody's
            raise MtlError(
                f"jax2onnx cannot convert this network ({type(error).__name__}: {first_line(error)}); "
                "export StableHLO instead"
            ) from error
    return model.SerializeToString()


def function(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX model as a function of stored images, computed by ONNX Runtime. Raises MtlError without it."""
    session = _installed()[1].InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def write(embed: Embedding | Network, path: Path) -> dict[str, Any]:
    """Writes `path` and the JSON file beside it, and returns the content of the latter.

    Raises:
      MtlError: jax2onnx is not installed, a file cannot be written, or the features differ from those of `embed`.
    """
    data = export(embed)
    return stablehlo.write_checked(embed, path, data, function(data), {"format": "ONNX"})


def _installed() -> tuple[Any, Any]:
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise MtlError(
            f"{SUFFIX} files need jax2onnx and ONNX Runtime ({first_line(error)}): pip install 'mtl_jax[onnx]'"
        ) from error
    return jax2onnx, onnxruntime
