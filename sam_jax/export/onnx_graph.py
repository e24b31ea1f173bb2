"""Turns a JAX function into an ONNX graph, with axes of any length.

The function is traced with symbolic shapes, and each primitive of its jaxpr becomes ONNX nodes. What depends on params
and constants alone is computed here, by JAX, and stored as weights. Of code that is chosen by platform, the default is
taken: the plain form, whose patterns ONNX runtimes know. This serves every image encoder, since only primitives count.

jax2onnx is the library for this; its releases exclude the Orbax that this project needs, or fail on symbolic axes.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

if TYPE_CHECKING:
    import onnx

Shape = tuple[Any, ...]  # of numbers and symbols

ELEMENTWISE = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "cos": "Cos",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "sign": "Sign",
    "abs": "Abs",
    "floor": "Floor",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "eq": "Equal",
}
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
UNCHANGED = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint")
INDEX_TYPES = {np.dtype(np.uint32): np.dtype(np.int64), np.dtype(np.uint8): np.dtype(np.int64)}


class Tensor(NamedTuple):
    """A value of the graph. It may be stored with axes of length 1 where `shape` is longer, as ONNX broadcasts them."""

    shape: Shape
    dtype: np.dtype
    stored: Shape
    name: str = ""  # of the graph's value; none: it is known
    value: np.ndarray | None = None  # known from params and constants alone


class UnknownPrimitive(NotImplementedError):
    """The function has an operation that has no translation here: a bug of ours, or an encoder that is new."""


class GraphBuilder:
    """Collects the nodes and weights of one graph."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._lengths: dict[str, str] = {}  # of symbols and of expressions of them: values with one number
        self._numbered = 0
        self._constants: dict[tuple[bytes, Shape, str], str] = {}
        self._symbols = tuple(symbols)

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node with one output; returns its name."""
        from onnx import helper

        self._numbered += 1
        name = f"{operator.lower()}_{self._numbered}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Adds a weight, or finds an equal one; returns its name."""
        value = np.asarray(value)  # scalars stay scalars
        key = value.tobytes(), value.shape, value.dtype.str
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.weights[self._constants[key]] = np.ascontiguousarray(value).reshape(value.shape)
        return self._constants[key]

    def numbers(self, *values: int) -> str:
        """Adds a vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def find_lengths(self, name: str, shape: Shape) -> None:
        """Takes the lengths of symbolic axes from an input of the graph."""
        for axis, length in enumerate(shape):
            if str(length) in self._symbols and str(length) not in self._lengths:
                self._lengths[str(length)] = self.add("Gather", [self.add("Shape", [name]), self.numbers(axis)], axis=0)

    def length(self, dimension: Any) -> str:
        """Returns a vector with the one number that a length is, which may be an expression of symbols."""
        text = str(dimension)
        if text not in self._lengths:
            self._lengths[text] = self._evaluate(ast.parse(text, mode="eval").body)
        return self._lengths[text]

    def _evaluate(self, part: ast.expr) -> str:
        match part:
            case ast.Constant(value=int(number)):
                return self.numbers(number)
            case ast.Name(id=name):
                return self._lengths[name]
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as operator, right=right):
                names = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
                return self.add(names[type(operator)], [self._evaluate(left), self._evaluate(right)])
        raise UnknownPrimitive(f"a length {ast.unparse(part)}")

    def shape(self, shape: Shape) -> str:
        """Returns a vector of lengths."""
        if all(isinstance(length, int) for length in shape):
            return self.numbers(*shape)
        return self.add("Concat", [self.length(length) for length in shape], axis=0)

    def stored(self, tensor: Tensor) -> str:
        """Returns the name of a value as it is stored, which may be shorter than its shape."""
        return tensor.name or self.constant(tensor.value)

    def whole(self, tensor: Tensor) -> str:
        """Returns the name of a value in its full shape."""
        name = self.stored(tensor)
        return name if same(tensor.stored, tensor.shape) else self.add("Expand", [name, self.shape(tensor.shape)])

    def reshape(self, name: str, before: Shape, after: Shape) -> str:
        """Reshapes a value, if it has another shape."""
        if same(before, after):
            return name
        symbolic = [axis for axis, length in enumerate(after) if not isinstance(length, int)]
        if len(symbolic) <= 1:
            shape = self.numbers(*(-1 if axis in symbolic else length for axis, length in enumerate(after)))
        else:
            shape = self.shape(after)
        return self.add("Reshape", [name, shape])

    def transpose(self, name: str, permutation: Sequence[int]) -> str:
        """Transposes a value, if the order of its axes changes."""
        if list(permutation) == list(range(len(permutation))):
            return name
        return self.add("Transpose", [name], perm=list(permutation))


def same(one: Shape, other: Shape) -> bool:
    """Returns whether two shapes are equal, symbols included."""
    return len(one) == len(other) and all(str(a) == str(b) for a, b in zip(one, other, strict=True))


def translate(
    builder: GraphBuilder, function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct]
) -> list[Tensor]:
    """Adds a function's nodes to a graph.

    Args:
        function: takes arrays in the order of `inputs`; returns arrays, in any nest.
        inputs: name, shape and type of each; lengths may be symbols of `jax.export.symbolic_shape`.

    Returns:
        the function's results.

    Raises:
        UnknownPrimitive: it does what has no translation.
    """
    jaxpr = jax.make_jaxpr(function)(*inputs.values())
    arguments = []
    for name, spec in inputs.items():
        builder.find_lengths(name, spec.shape)
        arguments.append(Tensor(tuple(spec.shape), np.dtype(spec.dtype), tuple(spec.shape), name))
    return _run(builder, jaxpr.jaxpr, [_known(value) for value in jaxpr.consts], arguments)


def _known(value: Any) -> Tensor:
    array = np.asarray(value)
    return Tensor(array.shape, array.dtype, array.shape, value=array)


def _run(builder: GraphBuilder, jaxpr: Any, consts: Sequence[Tensor], arguments: Sequence[Tensor]) -> list[Tensor]:
    values: dict[Any, Tensor] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Tensor:
        return _known(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _translate_one(builder, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _translate_one(builder: GraphBuilder, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [_known(np.int32(params["platforms"].index(None)))]
    if name == "cond":
        index, *arguments = inputs
        if index.value is None:
            raise UnknownPrimitive("a branch on values")
        branch = params["branches"][int(index.value)]
        return _run(builder, branch.jaxpr, [_known(value) for value in branch.consts], arguments)
    if name in CALLS:
        inner = params.get("call_jaxpr") or params.get("jaxpr")
        closed = hasattr(inner, "consts")
        consts = [_known(value) for value in inner.consts] if closed else []
        return _run(builder, inner.jaxpr if closed else inner, consts, inputs)
    if name in UNCHANGED:
        return inputs
    avals = [variable.aval for variable in equation.outvars]
    if all(tensor.value is not None for tensor in inputs) and name != "broadcast_in_dim" and _are_static(avals):
        whole = [jnp.asarray(np.broadcast_to(x.value, x.shape)) for x in inputs]  # type: ignore[arg-type]
        found = equation.primitive.bind(*whole, **params)
        return [_known(value) for value in (found if equation.primitive.multiple_results else [found])]
    (aval,) = avals
    rule = RULES.get(name)
    if rule is None and name not in ELEMENTWISE:
        raise UnknownPrimitive(f"the operation {name!r}")
    shape, dtype = tuple(aval.shape), np.dtype(aval.dtype)
    if rule is None:
        return [_elementwise(builder, ELEMENTWISE[name], inputs, shape, dtype)]
    return [rule(builder, inputs, shape, dtype, params)]


def _are_static(avals: Sequence[Any]) -> bool:
    return all(isinstance(length, int) for aval in avals for length in aval.shape)


def _elementwise(
    builder: GraphBuilder, operator: str, inputs: Sequence[Tensor], shape: Shape, dtype: np.dtype
) -> Tensor:
    stored = tuple(
        next((x.stored[axis] for x in inputs if x.shape and str(x.stored[axis]) != "1"), 1)
        for axis in range(len(shape))
    )
    return Tensor(shape, dtype, stored, builder.add(operator, [builder.stored(x) for x in inputs]))


def _bound(operator: str) -> Callable[..., Tensor]:
    def rule(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
        limit = next((x for x in inputs if x.value is not None and x.value.size == 1), None)
        if limit is None:
            return _elementwise(builder, operator, inputs, shape, dtype)
        (x,) = (x for x in inputs if x is not limit)
        bound = builder.constant(limit.value.reshape(()))  # type: ignore[union-attr]
        name = builder.add("Clip", [builder.stored(x), *([bound] if operator == "Max" else ["", bound])])
        return Tensor(shape, dtype, x.stored, name)  # faster than Max and Min of two arrays

    return rule


def _broadcast(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    x, *_ = inputs
    axes = params["broadcast_dimensions"]
    stored: list[Any] = [1] * len(shape)
    for axis, length in zip(axes, x.stored, strict=True):
        stored[axis] = length
    if x.value is not None:
        return Tensor(shape, dtype, tuple(stored), value=x.value.reshape(stored))
    return Tensor(shape, dtype, tuple(stored), builder.reshape(x.name, x.stored, tuple(stored)))


def _reshape(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    x, *_ = inputs
    kept = [length for length in x.shape if str(length) != "1"]
    if same(tuple(kept), tuple(length for length in shape if str(length) != "1")):  # only axes of 1 come or go
        lengths = iter([s for s, length in zip(x.stored, x.shape, strict=True) if str(length) != "1"])
        stored = tuple(1 if str(length) == "1" else next(lengths) for length in shape)
        return Tensor(shape, dtype, stored, builder.reshape(builder.stored(x), x.stored, stored))
    return Tensor(shape, dtype, shape, builder.reshape(builder.whole(x), x.shape, shape))


def _transpose(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    (x,), order = inputs, params["permutation"]
    stored = tuple(x.stored[axis] for axis in order)
    return Tensor(shape, dtype, stored, builder.transpose(builder.stored(x), order))


def _convert(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    return _cast(builder, inputs[0], INDEX_TYPES.get(dtype, dtype))


def _cast(builder: GraphBuilder, x: Tensor, dtype: np.dtype) -> Tensor:
    if x.dtype == dtype:
        return x
    return x._replace(dtype=dtype, value=None, name=builder.add("Cast", [builder.stored(x)], to=_type(dtype)))


def _type(dtype: np.dtype) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(dtype)


def _rsqrt(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    (x,) = inputs
    return Tensor(shape, dtype, x.stored, builder.add("Reciprocal", [builder.add("Sqrt", [builder.stored(x)])]))


def _square(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    name = builder.stored(inputs[0])
    return Tensor(shape, dtype, inputs[0].stored, builder.add("Mul", [name, name]))


def _power(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    exponent = builder.constant(np.array(params["y"], dtype))
    return Tensor(shape, dtype, inputs[0].stored, builder.add("Pow", [builder.stored(inputs[0]), exponent]))


def _not_equal(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    equal = _elementwise(builder, "Equal", inputs, shape, dtype)
    return equal._replace(name=builder.add("Not", [equal.name]))


def _select(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    which, no, yes = inputs
    if not which.shape and shape:
        which = which._replace(shape=shape, stored=(1,) * len(shape), value=which.value)
        which = which._replace(name=builder.reshape(which.name or builder.constant(which.value), (), which.stored))
    return _elementwise(builder, "Where", [which, yes, no], shape, dtype)


def _reduce(operator: str) -> Callable[..., Tensor]:
    def rule(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
        axes = params["axes"]
        name = builder.add(operator, [builder.whole(inputs[0]), builder.numbers(*axes)], keepdims=0)
        return Tensor(shape, dtype, shape, name)

    return rule


def _concatenate(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    names = [builder.whole(x) for x in inputs]
    return Tensor(shape, dtype, shape, builder.add("Concat", names, axis=params["dimension"]))


def _stack(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    axis = builder.numbers(params["axis"])
    names = [builder.add("Unsqueeze", [builder.whole(x), axis]) for x in inputs]
    return Tensor(shape, dtype, shape, builder.add("Concat", names, axis=params["axis"]))


def _slice(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    x, starts, ends = inputs[0], params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    axes = [
        axis
        for axis, (start, end, step) in enumerate(zip(starts, ends, strides, strict=True))
        if (str(start), str(end), str(step)) != ("0", str(x.shape[axis]), "1")
    ]
    bounds = [builder.shape(tuple(values[axis] for axis in axes)) for values in (starts, ends)]
    name = builder.add(
        "Slice", [builder.whole(x), *bounds, builder.numbers(*axes), builder.numbers(*(strides[a] for a in axes))]
    )
    return Tensor(shape, dtype, shape, name)


def _pad(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    x, value = inputs
    config = params["padding_config"]
    if any(inner for _, _, inner in config) or any(low < 0 or high < 0 for low, high, _ in config):
        raise UnknownPrimitive("padding between pixels, or less than none")
    pads = builder.numbers(*(low for low, _, _ in config), *(high for _, high, _ in config))
    return Tensor(shape, dtype, shape, builder.add("Pad", [builder.whole(x), pads, builder.stored(value)]))


def _gather(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    """Picks entries of one axis by their numbers, `x[:, indices]`, or a part that is known, `x[:, 2:5, :4]`."""
    x, indices = inputs
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axes, count = tuple(numbers.start_index_map), len(indices.shape) - 1
    whole_elsewhere = not numbers.operand_batching_dims and all(
        axis in axes or str(size) == str(x.shape[axis]) for axis, size in enumerate(sizes)
    )
    if whole_elsewhere and not numbers.collapsed_slice_dims and not count and indices.value is not None:
        last = [x.shape[axis] - sizes[axis] for axis in axes]  # beyond it, JAX moves the part back
        starts = np.clip(np.broadcast_to(indices.value, (len(axes),)), 0, last).tolist()
        ends = [start + sizes[axis] for start, axis in zip(starts, axes, strict=True)]
        bounds = [builder.numbers(*values) for values in (starts, ends, axes)]
        return Tensor(shape, dtype, shape, builder.add("Slice", [builder.whole(x), *bounds]))
    offsets = [axis if axis < axes[0] else axis + count for axis in range(len(x.shape) - 1)]
    entries = len(axes) == 1 and tuple(numbers.collapsed_slice_dims) == axes and list(numbers.offset_dims) == offsets
    if not (whole_elsewhere and entries and str(sizes[axes[0]]) == "1"):
        raise UnknownPrimitive(f"a gather of {sizes} by {numbers}")
    which = builder.reshape(builder.whole(indices), indices.shape, indices.shape[:-1])
    return Tensor(shape, dtype, shape, builder.add("Gather", [builder.whole(x), which], axis=axes[0]))


def _dot(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    """A product of (batch, rows, inner) and (batch, inner, columns), with axes that are moved and joined for it."""
    (left_inner, right_inner), (left_batch, right_batch) = params["dimension_numbers"]
    left, right = (_cast(builder, x, dtype) for x in inputs)  # sums of a wider type than what is summed
    left_free = [axis for axis in range(len(left.shape)) if axis not in (*left_inner, *left_batch)]
    right_free = [axis for axis in range(len(right.shape)) if axis not in (*right_inner, *right_batch)]
    batch = tuple(left.shape[axis] for axis in left_batch)
    rows, columns = ([x.shape[axis] for axis in free] for x, free in ((left, left_free), (right, right_free)))
    inner = [left.shape[axis] for axis in left_inner]
    one = _matrix(builder, left, [*left_batch, *left_free, *left_inner], (*batch, math.prod(rows), math.prod(inner)))
    two = _matrix(
        builder, right, [*right_batch, *right_inner, *right_free], (*batch, math.prod(inner), math.prod(columns))
    )
    product = builder.add("MatMul", [one, two])
    return Tensor(shape, dtype, shape, builder.reshape(product, (*batch, math.prod(rows), math.prod(columns)), shape))


def _matrix(builder: GraphBuilder, x: Tensor, order: list[int], shape: Shape) -> str:
    if x.value is not None:  # a weight is laid out here
        return builder.constant(np.broadcast_to(x.value, x.shape).transpose(order).reshape(shape))
    name = builder.transpose(builder.whole(x), order)
    return builder.reshape(name, tuple(x.shape[axis] for axis in order), shape)


def _convolve(builder: GraphBuilder, inputs: list[Tensor], shape: Shape, dtype: np.dtype, params: Any) -> Tensor:
    x, kernel = inputs
    numbers = params["dimension_numbers"]
    if kernel.value is None or any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UnknownPrimitive("a convolution that is transposed, or by a kernel that is no weight")
    weights = np.broadcast_to(kernel.value, kernel.shape).transpose(numbers.rhs_spec)
    name = builder.add(
        "Conv",
        [builder.transpose(builder.whole(x), numbers.lhs_spec), builder.constant(weights)],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
    )
    return Tensor(shape, dtype, shape, builder.transpose(name, np.argsort(numbers.out_spec).tolist()))


RULES: dict[str, Callable[..., Tensor]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "rsqrt": _rsqrt,
    "square": _square,
    "integer_pow": _power,
    "ne": _not_equal,
    "select_n": _select,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "max": _bound("Max"),
    "min": _bound("Min"),
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "pad": _pad,
    "gather": _gather,
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
}
