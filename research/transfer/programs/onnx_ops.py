"""What each operation of JAX is in ONNX (opset 18): functions of (graph, equation, inputs).

They return the output's value, or None where an operation is used in a way that has no translation.
https://onnx.ai/onnx/operators/ describes theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def words(params: dict[str, Any]) -> str:
    """An operation's parameters, for a message."""
    text = ", ".join(f"{key}={value}" for key, value in params.items() if value is not None)
    return text[:200] or "these inputs"


def _together(*values: Any) -> tuple[Any, ...]:
    """The shape that ONNX's broadcasting gives."""
    shapes = [tuple(value.shape) for value in values]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)
        for sizes in zip(*padded, strict=True)
    )


def _direct(op: str) -> Callable:
    return lambda graph, equation, *values: graph.node(op, values, _together(*values))


def _cast(graph, equation, x):
    from research.transfer.programs.onnx_graph import wide

    old, new = wide(equation.invars[0].aval.dtype), wide(equation.params["new_dtype"])
    if old == new:
        return x
    return graph.node(
        "Cast", [x], x.shape, to=graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(new))
    )


def _like(x, equation, number: float) -> np.ndarray:
    from research.transfer.programs.onnx_graph import wide

    return np.asarray(number, wide(equation.invars[0].aval.dtype))


def _rsqrt(graph, equation, x):
    return graph.node("Reciprocal", [graph.node("Sqrt", [x], x.shape)], x.shape)


def _erfc(graph, equation, x):
    return graph.node("Sub", [_like(x, equation, 1), graph.node("Erf", [x], x.shape)], x.shape)


def _clamp(graph, equation, least, x, most):
    x = graph.node("Max", [x, least], _together(x, least))
    return graph.node("Min", [x, most], _together(x, most))


def _select(graph, equation, which, *cases):
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        return None
    no, yes = cases
    return graph.node("Where", [which, yes, no], _together(which, yes, no))


def _broadcast(graph, equation, x):
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return graph.reshape(x, tuple(shape))


def _reshape(graph, equation, x):
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _permute(graph, x, order):
    if tuple(order) == tuple(range(len(order))):
        return x
    if isinstance(x, np.ndarray):
        return x.transpose(order)
    return graph.node("Transpose", [x], [x.shape[i] for i in order], perm=list(order))


def _transpose(graph, equation, x):
    return _permute(graph, x, equation.params["permutation"])


def _conv(graph, equation, x, kernel):
    p = equation.params
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or any(step != 1 for step in p["lhs_dilation"]):
        return None
    y = graph.node(
        "Conv",
        [_permute(graph, x, numbers.lhs_spec), _permute(graph, kernel, numbers.rhs_spec)],
        [equation.outvars[0].aval.shape[i] for i in numbers.out_spec],
        strides=list(p["window_strides"]),
        pads=_pads(p["padding"]),
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return _permute(graph, y, np.argsort(numbers.out_spec).tolist())


def _pads(pairs) -> list[int]:
    return [before for before, _ in pairs] + [after for _, after in pairs]


def _pool(op: str, **attributes: Any) -> Callable:
    def lower(graph, equation, x):
        p = equation.params
        window, strides, pads = p["window_dimensions"], p["window_strides"], p["padding"]
        plain = {*p["base_dilation"], *p["window_dilation"], window[0], window[-1]} == {1}
        if len(window) != 4 or not plain or {*pads[0], *pads[-1]} != {0}:
            return None
        b, h, w, c = equation.outvars[0].aval.shape
        y = graph.node(
            op,
            [_permute(graph, x, (0, 3, 1, 2))],
            (b, c, h, w),
            kernel_shape=list(window[1:3]),
            strides=list(strides[1:3]),
            pads=_pads(pads[1:3]),
            **attributes,
        )
        if op == "AveragePool":
            y = graph.node("Mul", [y, _like(x, equation, window[1] * window[2])], y.shape)
        return _permute(graph, y, (0, 2, 3, 1))

    return lower


def _dot(graph, equation, x, y):
    (cx, cy), (bx, by) = equation.params["dimension_numbers"]
    shape = equation.outvars[0].aval.shape
    if not bx and len(y.shape) == 2 and tuple(cx) == (len(x.shape) - 1,) and tuple(cy) == (0,):
        return graph.node("MatMul", [x, y], shape)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in x.shape]
    right = [next(letters) for _ in y.shape]
    for i, j in zip((*cx, *bx), (*cy, *by), strict=True):
        right[j] = left[i]
    out = [left[i] for i in bx]
    out += [letter for i, letter in enumerate(left) if i not in (*cx, *bx)]
    out += [letter for j, letter in enumerate(right) if j not in (*cy, *by)]
    formula = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
    return graph.node("Einsum", [x, y], shape, equation=formula)


def _reduce(op: str) -> Callable:
    def lower(graph, equation, x):
        axes = np.array(equation.params["axes"], np.int64)
        return graph.node(op, [x, axes], equation.outvars[0].aval.shape, keepdims=0)

    return lower


def _concatenate(graph, equation, *parts):
    shape = equation.outvars[0].aval.shape
    return graph.node("Concat", parts, shape, axis=equation.params["dimension"])


def _split(graph, equation, x):
    axis, start, parts = equation.params["axis"], 0, []
    for size, var in zip(equation.params["sizes"], equation.outvars, strict=True):
        parts.append(_cut(graph, x, [(axis, start, start + size, 1)], var.aval.shape))
        start += size
    return parts


def _slice(graph, equation, x):
    p = equation.params
    steps = p["strides"] or (1,) * len(x.shape)
    cuts = [
        (axis, start, stop, step)
        for axis, (start, stop, step) in enumerate(
            zip(p["start_indices"], p["limit_indices"], steps, strict=True)
        )
        if (start, stop, step) != (0, x.shape[axis], 1)
    ]
    if not all(isinstance(number, int) for cut in cuts for number in cut):
        return None
    return _cut(graph, x, cuts, equation.outvars[0].aval.shape)


def _cut(graph, x, cuts, shape):
    if not cuts:
        return x
    axes, starts, stops, steps = (
        np.array(numbers, np.int64) for numbers in zip(*cuts, strict=True)
    )
    return graph.node("Slice", [x, starts, stops, axes, steps], shape)


def _gather(graph, equation, x, indices):
    """x[:, 3] and the like: whole axes but for those of which one place is taken."""
    p, numbers = equation.params, equation.params["dimension_numbers"]
    picked = tuple(numbers.start_index_map)
    sizes = tuple(1 if axis in picked else size for axis, size in enumerate(x.shape))
    shape = equation.outvars[0].aval.shape
    usual = (
        isinstance(indices, np.ndarray)
        and indices.shape == (len(picked),)
        and tuple(sorted(picked)) == tuple(numbers.collapsed_slice_dims)
        and tuple(numbers.offset_dims) == tuple(range(len(shape)))
        and tuple(p["slice_sizes"]) == sizes
    )
    if not usual or any(
        not 0 <= i < x.shape[axis] for axis, i in zip(picked, indices, strict=True)
    ):
        return None
    cuts = [(axis, int(i), int(i) + 1, 1) for axis, i in zip(picked, indices, strict=True)]
    return graph.reshape(_cut(graph, x, cuts, sizes), shape)


def _pad(graph, equation, x, value):
    pads = equation.params["padding_config"]
    if any(inner or low < 0 or high < 0 for low, high, inner in pads):
        return None
    amounts = np.array([p[0] for p in pads] + [p[1] for p in pads], np.int64)
    return graph.node("Pad", [x, amounts, value], equation.outvars[0].aval.shape)


def _same(graph, equation, x):
    return x


def _power(graph, equation, x):
    return graph.node("Pow", [x, _like(x, equation, equation.params["y"])], x.shape)


DIRECT = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
# Broadcasting as NumPy's: inputs may be smaller than what they stand for, and so may the output.
ELEMENTWISE: dict[str, Callable] = {
    **{name: _direct(op) for name, op in DIRECT.items()},
    "square": lambda graph, equation, x: graph.node("Mul", [x, x], x.shape),
    "integer_pow": _power,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _cast,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "optimization_barrier": _same,
    "reduce_precision": _same,
}
KEEP_SMALL = ("broadcast_in_dim", "transpose")
OPS: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "conv_general_dilated": _conv,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool", count_include_pad=1),
    "dot_general": _dot,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "pad": _pad,
}
