"""Meta-transfer learning for few-shot image classification (Sun et al., CVPR 2019) as pure JAX functions.

The names here are the library; README and docs/research.md show them composed with `jax.grad`, `vmap`, `jit`, `pmap`.
Each is imported on first use, so that listing the programs does not wait for JAX.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.backbones import create_backbone
    from mtl_jax.base_learner import adapt, adapt_head, adapted_logits, init_head, logits
    from mtl_jax.classify.classifier import FewShotClassifier
    from mtl_jax.embed import Embed
    from mtl_jax.episodes import check_table, gather, sample_episode
    from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
    from mtl_jax.learners import Inner
    from mtl_jax.meta import Frozen, MetaState, batch_loss, episode_logits, episode_loss, init_state, train_step
    from mtl_jax.metrics import accuracy, cross_entropy, mean_interval, paired_difference
    from mtl_jax.parallel import map_tasks
    from mtl_jax.reference_weights import ReferenceWeights, load_reference_weights
    from mtl_jax.scale_shift import apply as apply_scale_shift
    from mtl_jax.scale_shift import count as count_scale_shift
    from mtl_jax.scale_shift import init as init_scale_shift
    from mtl_jax.solved_learners import Logistic, Prototypes, Ridge
    from mtl_jax.types import ClassTable, Episode

__version__ = "0.1.0"

__all__ = [
    "ClassTable",
    "Embed",
    "Episode",
    "FewShotClassifier",
    "Frozen",
    "Inner",
    "Logistic",
    "MetaState",
    "Model",
    "Protocol",
    "Prototypes",
    "ReferenceWeights",
    "Ridge",
    "__version__",
    "accuracy",
    "adapt",
    "adapt_head",
    "adapted_logits",
    "apply_scale_shift",
    "batch_loss",
    "check_table",
    "count_scale_shift",
    "create_backbone",
    "cross_entropy",
    "episode_logits",
    "episode_loss",
    "evaluate_tasks",
    "gather",
    "init_head",
    "init_scale_shift",
    "init_state",
    "load_reference_weights",
    "logits",
    "map_tasks",
    "mean_interval",
    "paired_difference",
    "sample_episode",
    "train_step",
]

_NAMES = {
    "backbones": "create_backbone",
    "base_learner": "adapt adapt_head adapted_logits init_head logits",
    "classify.classifier": "FewShotClassifier",
    "embed": "Embed",
    "episodes": "check_table gather sample_episode",
    "evaluation": "Model Protocol evaluate_tasks",
    "learners": "Inner",
    "meta": "Frozen MetaState batch_loss episode_logits episode_loss init_state train_step",
    "metrics": "accuracy cross_entropy mean_interval paired_difference",
    "parallel": "map_tasks",
    "reference_weights": "ReferenceWeights load_reference_weights",
    "scale_shift": "apply_scale_shift count_scale_shift init_scale_shift",
    "solved_learners": "Logistic Prototypes Ridge",
    "types": "ClassTable Episode",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A name of the library, or a module of the core: `mtl_jax.meta` needs no import of its own."""
    if name in _MODULES:
        module = importlib.import_module(f"mtl_jax.{_MODULES[name]}")
        value = getattr(module, name.removesuffix("_scale_shift"))
    elif not name.startswith("_") and importlib.util.find_spec(f"mtl_jax.{name}"):
        value = importlib.import_module(f"mtl_jax.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.argv[:1] == ["-m"]:  # `python -m` is importing this: a program begins
    from mtl_jax.launch import start

    start.begin()
