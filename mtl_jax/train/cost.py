"""What a computation costs, from its shapes alone: floating-point operations and peak memory, before it is compiled.

The function is traced, not compiled. Operations are those of convolutions and matrix products. Memory follows the trace
in order: an array takes memory from its creation to its last use, and what is computed element by element lies in
memory only where a convolution, a matrix product, a reduction or the like reads it, since compilers fuse the rest.

XLA's own `lowered.cost_analysis()` gives the same operations within 3 % where nothing loops, but counts the body of a
loop once, whatever its length, and knows no peak memory before it has compiled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

_ELEMENTWISE = """
    add sub mul div neg max min exp exp2 log log1p expm1 tanh logistic erf rsqrt sqrt pow integer_pow square abs sign
    clamp select_n convert_element_type broadcast_in_dim reshape squeeze expand_dims transpose rev pad slice copy
    stop_gradient eq ne lt le gt ge and or not xor iota is_finite add_any mul_no_nan
"""
_FUSED = frozenset(_ELEMENTWISE.split())
_GEOMETRY = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
_LOOPS = ("scan", "while", "cond")
MARGIN = 1.7  # what compilers were seen to need of the estimate at most: they copy maps into other layouts


class Cost(NamedTuple):
    """flops: operations of convolutions and matrix products. bytes: peak memory, arguments and results included."""

    flops: float
    bytes: int


def estimate(function: Callable[..., Any], *arguments: Any) -> Cost:
    """The cost of `function(*arguments)`; arguments may be `jax.ShapeDtypeStruct`s. Nothing is computed or compiled."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return Cost(_flops(jaxpr), _peak(jaxpr))


def _inner(equation: Any) -> list[Any]:
    """The jaxprs that an equation calls."""
    jaxprs = []
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if isinstance(part, core.Jaxpr):
                jaxprs.append(part)
    return jaxprs


def _flops(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, _inner(equation)
        if name == "dot_general":
            total += _product_flops(equation)
        elif name == "conv_general_dilated":
            total += _convolution_flops(equation)
        elif name == "cond":
            total += max(map(_flops, inner))
        else:
            total += equation.params.get("length", 1) * sum(map(_flops, inner))
    return total


def _product_flops(equation: Any) -> float:
    """Two operations for each multiplication.

    A product of a matrix and a vector counts nothing: `layers_fast.channel_sum` adds up maps by one, in the time that
    reading the matrix takes.
    """
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (operand.aval for operand in equation.invars)
    depth, shared = (math.prod(left.shape[axis] for axis in axes) for axes in (contracted, batch))
    if min(left.size, right.size) <= depth * shared:
        return 0.0
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution_flops(equation: Any) -> float:
    """Two operations for each multiplication with an image's pixel; those with padding and dilation count nothing."""
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    image, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    channels = kernel[numbers.rhs_spec[1]]
    batch, features = result[numbers.out_spec[0]], result[numbers.out_spec[1]]
    total = 2.0 * batch * features * channels / equation.params["batch_group_count"]
    for axis in range(2, len(kernel)):
        total *= _overlaps(
            image[numbers.lhs_spec[axis]], kernel[numbers.rhs_spec[axis]], result[numbers.out_spec[axis]],
            *(equation.params[name][axis - 2] for name in _GEOMETRY),
        )  # fmt: skip
    return total


def _overlaps(image: int, kernel: int, result: int, stride: int, padding: Any, spread: int, dilation: int) -> int:
    """Along one axis, the pairs of a kernel's element and a true pixel, over all places of the result."""
    spots = (place * stride - padding[0] + k * dilation for place in range(result) for k in range(kernel))
    return sum(0 <= spot < image * spread and spot % spread == 0 for spot in spots)


class Step(NamedTuple):
    """An equation of a trace, by the name of its primitive: the arrays it reads and makes, and bytes needed besides."""

    name: str
    reads: list[int]
    makes: list[int]
    scratch: int

    @property
    def fused(self) -> bool:
        """Whether compilers join it with what reads it."""
        return self.name in _FUSED


class Trace:
    """The equations of a trace in order, calls opened up; arrays have numbers. A loop is one step."""

    def __init__(self, jaxpr: core.Jaxpr) -> None:
        self.sizes: list[int] = []
        self.steps: list[Step] = []
        self.inputs = [self._new(var) for var in (*jaxpr.invars, *jaxpr.constvars)]
        self.outputs = self._open(jaxpr, self.inputs)

    def _new(self, var: Any) -> int:
        aval = var.aval
        self.sizes.append(math.prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 8))
        return len(self.sizes) - 1

    def _open(self, jaxpr: core.Jaxpr, inputs: list[int]) -> list[int]:
        known = dict(zip((*jaxpr.invars, *jaxpr.constvars), inputs, strict=False))
        for var in jaxpr.constvars:
            known.setdefault(var, self._new(var))

        def number(var: Any) -> int:
            return self._new(var) if isinstance(var, core.Literal) else known[var]

        for equation in jaxpr.eqns:
            inner, reads = _inner(equation), [number(var) for var in equation.invars]
            if len(inner) == 1 and equation.primitive.name not in _LOOPS:
                made = self._open(inner[0], reads)
            else:
                scratch = max(map(_peak, inner), default=0)
                made = [self._new(var) for var in equation.outvars]
                self.steps.append(Step(equation.primitive.name, reads, made, scratch))
            known.update(zip(equation.outvars, made, strict=True))
        return [number(var) for var in jaxpr.outvars]


def _peak(jaxpr: core.Jaxpr) -> int:
    """The most bytes that live at once."""
    trace = Trace(jaxpr)
    roots = _roots(trace)
    last = dict.fromkeys(trace.inputs, 0)
    for time, step in enumerate(trace.steps):
        last.update((root, time) for array in (*step.reads, *step.makes) for root in roots.get(array, ()))
    end = len(trace.steps)
    last.update((root, end) for array in trace.outputs for root in roots.get(array, ()))
    last.update((array, end) for array in trace.inputs)
    dies: dict[int, list[int]] = {}
    for array, time in last.items():
        dies.setdefault(time, []).append(array)
    born = set(trace.inputs)
    live = sum(trace.sizes[array] for array in born)
    peak = live
    for time, step in enumerate(trace.steps):
        new = {array for array in step.makes if array in last and roots[array] == (array,)} - born
        born |= new
        live += sum(trace.sizes[array] for array in new)
        peak = max(peak, live + step.scratch)
        live -= sum(trace.sizes[array] for array in dies.get(time, ()) if array in born)
    return peak


def _roots(trace: Trace) -> dict[int, tuple[int, ...]]:
    """For each array, those in memory that it is made of: itself, unless it is only ever read by what is fused."""
    kept = {array for step in trace.steps if not step.fused for array in step.reads} | set(trace.outputs)
    roots: dict[int, tuple[int, ...]] = {array: (array,) for array in trace.inputs}
    for step in trace.steps:
        sources = tuple(dict.fromkeys(root for array in step.reads for root in roots.get(array, ())))
        for array in step.makes:
            roots[array] = (array,) if not step.fused or array in kept else sources
    return roots
