"""Audit of derivatives in float64: `python -m tests.audit` prints the largest relative error of each.

Every rule that is written by hand is compared with plain operations, and every meta-gradient in the forms for CPUs and
for accelerators with the one by `layers.PLAIN`. A rule of the package that RULES lacks is an error as well.
"""

import ast
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mtl_jax
from mtl_jax import (
    backbones,
    create_backbone,
    init_scale_shift,
    layers,
    layers_fast,
    learners,
    logistic,
    meta,
    vision_mobile,
)
from mtl_jax.types import Array, Episode

LIMIT = 1e-9
FORMS = {"cpu": True, "accelerator": False}
MAKERS = {"custom_jvp", "custom_vjp", "custom_gradient", "custom_transpose", "linear_call"}


@contextlib.contextmanager
def device_form(on_cpu: bool) -> Iterator[None]:
    """Functions take their form for CPUs, or for other devices, whatever there is."""
    modules = [module for name, module in sys.modules.items() if name.startswith("mtl_jax.")]
    with contextlib.ExitStack() as stack:
        for module in filter(lambda module: hasattr(module, "on_cpu"), modules):
            stack.enter_context(mock.patch.object(module, "on_cpu", lambda: on_cpu))
        yield


def relative_error(found: Any, wanted: Any) -> float:
    """The largest error of a leaf, relative to its largest number.

    Leaves a thousand times smaller than the largest one are measured against that: those that batch norm cancels are
    rounding noise.
    """
    found, wanted = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (found, wanted))
    sizes = [np.abs(leaf).max() for leaf in wanted]
    floor = 1e-3 * max(sizes) or 1.0
    errors = [np.abs(f - w).max() / max(size, floor) for f, w, size in zip(found, wanted, sizes, strict=True)]
    return float(np.max(errors))  # unlike `max`, NaN where there is one


def _normal(seed: int, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(0.3, 1, shape))


class Case(NamedTuple):
    """A function with a custom rule, the same by plain operations, and the shapes of what they take."""

    ours: Callable[..., Any]
    plain: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    name: str = ""


MAPS, CHANNELS = (2, 4, 6, 3), (3,)
ODD_MAPS = (2, 5, 7, 3)


def _plain_affine(activation: str, x: Array, mean: Array, factor: Array, offset: Array) -> Array:
    return layers.ACTIVATIONS[activation]((x - jax.lax.stop_gradient(mean)) * factor + offset)


def _by_part(moments: Callable[..., Any], x: Array) -> Any:
    """Moments of each image, as if each were on a device of its own."""
    return jax.vmap(lambda x: moments(x[None], "devices"), axis_name="devices")(x)


def _plain_by_part(x: Array) -> Any:
    return jax.tree.map(lambda v: jnp.broadcast_to(v, (len(x), *v.shape)), layers.plain_moments(x, None))


def _moments_cases(moments: Callable[..., Any]) -> list[Case]:
    return [
        Case(lambda x: moments(x, None), lambda x: layers.plain_moments(x, None), (MAPS,)),
        Case(functools.partial(_by_part, moments), _plain_by_part, (MAPS,), "over an axis"),
    ]


def _batch_norm(activation: str, pool: bool, x: Array, scale: Array, bias: Array) -> Array:
    module = layers.BatchNorm(pool=pool, activation=activation)
    stats = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(bias)}
    return module.apply({"params": {"scale": scale, "bias": bias}, "batch_stats": stats}, x, "batch")


def _plain_batch_norm(activation: str, pool: bool, x: Array, scale: Array, bias: Array) -> Array:
    mean, var = layers.plain_moments(x, None)
    y = layers.ACTIVATIONS[activation]((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)
    return layers.plain_max_pool(y, False) if pool else y


def _operation(name: str, options: tuple[Any, ...], *arrays: Array) -> Array:
    return getattr(layers.operations(), name)(*arrays, *options)


def _operation_case(name: str, shapes: tuple[tuple[int, ...], ...], *options: Any, label: str) -> Case:
    ours, plain = functools.partial(_operation, name, options), getattr(layers.PLAIN, name)
    return Case(ours, lambda *arrays: plain(*arrays, *options), shapes, label)


def _affine_cases() -> Iterator[Case]:
    shapes = MAPS, CHANNELS, CHANNELS, CHANNELS
    for name, activation in layers.ACTIVATIONS.items():
        ours = functools.partial(layers_fast.affine_twice, activation=activation, dtype=jnp.float64)
        yield Case(ours, functools.partial(_plain_affine, name), shapes, name)
    for name, pool in (("relu", True), ("leaky_relu", False)):
        ours, plain = (functools.partial(form, name, pool) for form in (_batch_norm, _plain_batch_norm))
        yield Case(ours, plain, (MAPS, CHANNELS, CHANNELS), f"in batch norm, {name}{', pooled' if pool else ''}")
    for name, pool, constant in itertools.product(layers.ACTIVATIONS, (False, True), (False, True)):
        label = f"normalize, {name}{', pooled' if pool else ''}{', constant statistics' if constant else ''}"
        yield _operation_case("normalize", shapes, layers.ACTIVATIONS[name], pool, constant, label=label)


def _logistic(solution: Callable[[Array, Array], Any], rows: Array, scale: Array) -> Any:
    return solution(rows - rows.mean(0), jnp.exp(scale[0]))


LABELS = np.eye(3)[[0, 1, 2, 0, 1]].T  # [N, S]


def _plain_logistic(rows: Array, c: Array) -> tuple[Array, Array]:
    """The minimum by dense Newton steps; two more from it have its derivatives of first and second order."""

    def gradient(unknowns, rows, c):
        w, b = unknowns[:-3].reshape(3, -1), unknowns[-3:]
        forces = c * (LABELS - jax.nn.softmax(w @ rows.T + b[:, None], axis=0))
        return jnp.concatenate([(w - forces @ rows).ravel(), b.sum() - forces.sum(1)])  # biases sum to 0

    def step(unknowns, rows, c):
        return unknowns - jnp.linalg.solve(jax.jacfwd(gradient)(unknowns, rows, c), gradient(unknowns, rows, c))

    unknowns = jnp.zeros(3 * rows.shape[1] + 3)
    for _ in range(30):
        unknowns = step(unknowns, *jax.lax.stop_gradient((rows, c)))
    unknowns = step(step(unknowns, rows, c), rows, c)
    w, b = unknowns[:-3].reshape(3, -1), unknowns[-3:]
    return c * (LABELS - jax.nn.softmax(w @ rows.T + b[:, None], axis=0)), b


RULES: dict[str, list[Case]] = {
    "logistic.minimise": [
        Case(
            functools.partial(_logistic, lambda rows, c: logistic.minimise(rows, jnp.asarray(LABELS), c)),
            functools.partial(_logistic, _plain_logistic),
            ((5, 4), (1,)),
        )
    ],
    "layers_fast.affine_twice": list(_affine_cases()),
    "layers_fast.as_map": [
        Case(lambda v: layers_fast.as_map(v, MAPS), lambda v: jnp.broadcast_to(v, MAPS), (CHANNELS,)),
        _operation_case("add_bias", (MAPS, CHANNELS), False, label="add_bias"),
    ],
    "layers_fast.moments_in_two_passes": _moments_cases(layers_fast.moments_in_two_passes),
    "layers_fast.moments_in_one_pass": _moments_cases(layers_fast.moments_in_one_pass),
    "layers_fast.activate_once": [
        _operation_case("activate", (MAPS,), activation, label=name) for name, activation in layers.ACTIVATIONS.items()
    ],
    **{
        f"layers_fast.{rule}": [
            _operation_case("max_pool", (MAPS,), False, label=""),
            _operation_case("max_pool", (ODD_MAPS,), True, label="of odd sizes"),
        ]
        for rule in ("largest", "largest_compared")
    },
}


def unknown_rules() -> set[str]:
    """Where the package's files make a custom rule that RULES has not: by function, or by line if it has no name."""
    found = set()
    for path in Path(mtl_jax.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        decorated = {
            id(node): function.name
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for decorator in function.decorator_list
            for node in ast.walk(decorator)
        }
        for node in ast.walk(tree):
            if getattr(node, "attr", getattr(node, "id", getattr(node, "name", ""))) in MAKERS:
                found.add(f"{path.stem}.{decorated.get(id(node), f'py, line {node.lineno}')}")
    return found - RULES.keys()


def _orders(function: Callable[..., Any], arguments: list[Array], direction: list[Array]) -> list[Any]:
    """Value, gradient, and the Hessian of a score times a direction: forward over reverse, reverse over reverse."""

    def score(*arguments):
        return sum((jnp.sin(leaf) * _normal(2, leaf.shape)).sum() for leaf in jax.tree.leaves(function(*arguments)))

    each = tuple(range(len(arguments)))
    gradient = jax.grad(score, each)

    def slope(*arguments):
        return sum((g * d).sum() for g, d in zip(gradient(*arguments), direction, strict=True))

    forward = jax.jvp(gradient, tuple(arguments), tuple(direction))[1]
    return [function(*arguments), gradient(*arguments), forward, jax.grad(slope, each)(*arguments)]


def rule_errors() -> Iterator[tuple[str, float]]:
    """(rule, form and case; largest error of value, gradient and second-order derivatives)."""
    for (rule, cases), (form, on_cpu) in itertools.product(RULES.items(), FORMS.items()):
        for case in cases:
            arguments, direction = ([_normal(seed, shape) for shape in case.shapes] for seed in (0, 1))
            with device_form(on_cpu):
                found, wanted = (_orders(function, arguments, direction) for function in (case.ours, case.plain))
            error = np.max([relative_error(f, w) for f, w in zip(found, wanted, strict=True)])
            yield " ".join(filter(None, (rule, case.name, f"({form})"))), error


class _Blocks(nn.Module):
    """One of each that has a form for accelerators: a pooled norm, a residual block's end, depthwise, a pool apart."""

    options: layers.Options

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str = "running") -> Array:
        x = backbones._Conv4Block(self.options, 3, name="block1")(images, train, batch_statistics)
        x = backbones._BasicBlock(self.options, 3, 1, name="block2")(x, batch_statistics)
        stage = vision_mobile.Stage(expand=2, size=3, stride=1, channels=3, blocks=1)
        x = vision_mobile._InvertedResidual(self.options, stage, 1, name="block3")(x, batch_statistics)
        return layers.average_map(layers.max_pool(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how each is made, and the size of its images
    "blocks": (lambda: _Blocks(layers.Options()), 8),
    "conv4": (lambda: create_backbone("conv4", width=0.125), 16),
}


def _task(network: str) -> tuple[nn.Module, meta.Params, meta.Frozen, Episode]:
    """The network, learned groups off their start, the rest, and a task of two classes with an image each."""
    make, size = NETWORKS[network]
    module = make()
    support, query = (_normal(seed, (2, size, size, 3)) for seed in (0, 1))
    variables = jax.jit(module.init)(jax.random.key(0), support)
    params, ss = (
        jax.tree.map(lambda leaf: leaf + 0.1 * _normal(2, leaf.shape), tree)
        for tree in (variables["params"], init_scale_shift(variables["params"]))
    )
    stats = jax.tree.map(lambda leaf: 0.5 + jnp.abs(_normal(3, leaf.shape)), variables["batch_stats"])
    width = module.apply(variables, support).shape[-1]
    head = {"kernel": _normal(4, (width, 2)), "bias": _normal(5, (2,))}
    labels = jnp.arange(2)
    learned = {"head": head, "ss": ss, "params": params}
    return module, learned, meta.Frozen(params, stats), Episode(support, labels, query, labels)


def meta_errors(network: str) -> Iterator[tuple[str, float]]:
    """(network, what adapts, batch norm's mode, order, form; error of loss, averages and meta-gradient)."""
    module, learned, frozen, episode = _task(network)
    for adapt, mode, first_order in itertools.product(learners.ADAPT, layers.BATCH_STATISTICS, (True, False)):
        inner = meta.Inner(2, 0.1, first_order, adapt=adapt)
        order = "first" if first_order else "second"

        def outcome(inner=inner, mode=mode):
            loss = functools.partial(meta.episode_loss, embed=meta.Embed(module, mode), inner=inner)
            (value, result), gradient = jax.value_and_grad(loss, has_aux=True)(learned, frozen, episode)
            return value, result.batch_stats, gradient

        with layers.plain_form():
            wanted = outcome()
        for form, on_cpu in FORMS.items():
            with device_form(on_cpu):
                found = outcome()
            error = np.max([relative_error(f, w) for f, w in zip(found, wanted, strict=True)])
            yield f"meta-gradient of {network}, adapt {adapt}, {mode}, {order} order ({form})", error
    jax.clear_caches()  # thousands of small programs, since nothing is under `jit`


def failures(errors: Iterator[tuple[str, float]]) -> list[str]:
    """Prints the errors as they come; the names of those above LIMIT."""
    wrong = []
    for name, error in errors:
        print(f"{error:8.1e}  {name}", flush=True)
        if not error <= LIMIT:
            wrong.append(name)
    return wrong


def main() -> int:
    """All errors; 1 where one is above LIMIT or a rule is unknown."""
    with jax.enable_x64(True):
        wrong = failures(itertools.chain(rule_errors(), *map(meta_errors, NETWORKS)))
    unknown = sorted(unknown_rules())
    for name in wrong:
        print(f"above {LIMIT:.0e}: {name}", file=sys.stderr)
    for name in unknown:
        print(f"{name} has a rule of its own, which RULES in tests/audit.py does not compare", file=sys.stderr)
    return int(bool(wrong or unknown))


if __name__ == "__main__":
    sys.exit(main())
