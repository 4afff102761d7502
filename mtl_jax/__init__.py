"""Meta-transfer learning for few-shot image classification (Sun et al., CVPR 2019) as pure JAX functions.

The names here are the library; README and docs/research.md show them composed with `jax.grad`, `vmap`, `jit`, `pmap`.
"""

from typing import TYPE_CHECKING, Any

from mtl_jax.backbones import create_backbone
from mtl_jax.base_learner import adapt, adapt_head, adapted_logits, init_head
from mtl_jax.episodes import check_table, sample_episode
from mtl_jax.scale_shift import apply as apply_scale_shift
from mtl_jax.scale_shift import init as init_scale_shift
from mtl_jax.types import ClassTable, Episode

if TYPE_CHECKING:
    from mtl_jax.classify.classifier import FewShotClassifier
    from mtl_jax.reference_weights import ReferenceWeights, load_reference_weights

__version__ = "0.1.0"

__all__ = [
    "ClassTable",
    "Episode",
    "FewShotClassifier",
    "ReferenceWeights",
    "__version__",
    "adapt",
    "adapt_head",
    "adapted_logits",
    "apply_scale_shift",
    "check_table",
    "create_backbone",
    "init_head",
    "init_scale_shift",
    "load_reference_weights",
    "sample_episode",
]


def __getattr__(name: str) -> Any:
    if name == "FewShotClassifier":  # imported only when used: it needs scikit-learn
        from mtl_jax.classify.classifier import FewShotClassifier

        return FewShotClassifier
    if name in ("ReferenceWeights", "load_reference_weights"):  # needs safetensors and the readers of files
        from mtl_jax import reference_weights

        return getattr(reference_weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
