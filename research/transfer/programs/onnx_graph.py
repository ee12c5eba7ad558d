"""A jaxpr as an ONNX graph: what depends on weights alone is computed here, the rest translated one by one.

A value that is broadcast stays small until an operation needs it in full: ONNX's arithmetic broadcasts by itself. So a
`Value` knows the shape that it has in the graph, 1 where it stands for more.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from research.transfer.programs import onnx_ops

Shape = tuple[Any, ...]  # ints, and expressions of the open batch size


class Unsupported(Exception):
    """Says which operation has no translation."""


class Value(NamedTuple):
    """An array that is known only when the program runs. One that is known now is a NumPy array."""

    name: str
    shape: Shape


class Graph:
    """Collects the nodes and constants of one graph with one input, whose first axis is open."""

    def __init__(self, onnx: Any, name: str, shape: Shape):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._input = Value(name, shape)
        self._names: dict[int, tuple[str, Any]] = {}  # by the identity of the array, which is kept
        self._batch: str | None = None

    def lower(self, traced: Any) -> list[Value]:
        """Adds what a closed jaxpr computes from the input, and returns its outputs."""
        outputs = self._run(traced.jaxpr, traced.consts, [self._input])
        spread = [
            self.spread(value, var.aval.shape)
            for value, var in zip(outputs, traced.jaxpr.outvars, strict=True)
        ]
        return [Value(self.name_of(value), value.shape) for value in spread]

    def node(self, op: str, inputs: Sequence[Any], shape: Shape, **attributes: Any) -> Value:
        """Adds one node of one output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        names = [self.name_of(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(op, names, [name], name=name, **attributes))
        return Value(name, tuple(shape))

    def name_of(self, value: Any) -> str:
        """The name of a value; a known array becomes a constant of the graph."""
        if isinstance(value, Value):
            return value.name
        if id(value) not in self._names:
            array = np.ascontiguousarray(value, wide(value.dtype)).reshape(value.shape)
            name = f"constant_{len(self.constants)}"
            self.constants.append(self.onnx.numpy_helper.from_array(array, name))
            self._names[id(value)] = name, value
        return self._names[id(value)][0]

    def reshape(self, value: Any, shape: Shape) -> Any:
        """`value` in another shape, of which at most one axis may depend on the batch size."""
        if tuple(value.shape) == tuple(shape):
            return value
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise Unsupported(f"a reshape to {shape}")
        return self.node("Reshape", [value, np.array(sizes, np.int64)], shape)

    def spread(self, value: Any, shape: Shape) -> Any:
        """`value` in full: repeated along the axes where it has 1 and stands for more."""
        if tuple(value.shape) == tuple(shape):
            return value
        known = all(isinstance(size, int) for size in shape)
        if known and isinstance(value, np.ndarray):
            return np.broadcast_to(value, shape)
        if known:
            return self.node("Expand", [value, np.array(shape, np.int64)], shape)
        parts = [
            np.array([size], np.int64) if isinstance(size, int) else self._batch_size(size)
            for size in shape
        ]
        return self.node(
            "Expand", [value, self.node("Concat", parts, (len(shape),), axis=0)], shape
        )

    def _batch_size(self, size: Any) -> Value:
        if size != self._input.shape[0]:
            raise Unsupported(f"a broadcast to {size}")
        if self._batch is None:
            self._batch = self.node("Shape", [self._input], (1,), start=0, end=1).name
        return Value(self._batch, (1,))

    def _run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = {
            var: value if isinstance(value, Value) else np.asarray(value)
            for var, value in zip(
                [*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True
            )
        }

        def read(var: Any) -> Any:
            return np.asarray(var.val) if isinstance(var, Literal) else known[var]

        for equation in _live(jaxpr):
            inputs = [read(var) for var in equation.invars]
            outputs = self._equation(equation, inputs)
            known |= zip(equation.outvars, outputs, strict=True)
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":  # of the forms an operation has, the one for any platform
            platforms = list(params["platforms"])
            return [np.asarray(platforms.index(None) if None in platforms else 0)]
        if name == "cond" and isinstance(inputs[0], np.ndarray):
            branch = params["branches"][int(inputs[0])]
            return self._run(branch.jaxpr, branch.consts, inputs[1:])
        for key in ("jaxpr", "call_jaxpr"):  # jit, custom_jvp_call, custom_vjp_call, remat
            if key in params and name not in ("scan", "while"):
                inner = params[key]
                consts = getattr(inner, "consts", ())
                return self._run(getattr(inner, "jaxpr", inner), consts, inputs)
        shapes = [var.aval.shape for var in equation.outvars]
        static = all(isinstance(size, int) for shape in shapes for size in shape)
        if static and all(isinstance(value, np.ndarray) for value in inputs):
            results = equation.primitive.bind(*inputs, **params)
            return [
                np.asarray(x)
                for x in (results if equation.primitive.multiple_results else [results])
            ]
        if name in onnx_ops.ELEMENTWISE:
            return [onnx_ops.ELEMENTWISE[name](self, equation, *inputs)]
        if name not in onnx_ops.OPS:
            raise Unsupported(f"the operation '{name}'")
        if name not in onnx_ops.KEEP_SMALL:
            inputs = [
                self.spread(value, var.aval.shape)
                for value, var in zip(inputs, equation.invars, strict=True)
            ]
        outputs = onnx_ops.OPS[name](self, equation, *inputs)
        if outputs is None:
            raise Unsupported(f"the operation '{name}' with {onnx_ops.words(params)}")
        return outputs if equation.primitive.multiple_results else [outputs]


def wide(dtype: Any) -> np.dtype:
    """The dtype that a value has in the graph: few runtimes compute in bfloat16."""
    return np.dtype(np.float32) if np.dtype(dtype).name == "bfloat16" else np.dtype(dtype)


def _live(jaxpr: Any) -> list[Any]:
    """The equations that outputs depend on, in order."""
    needed = {id(var) for var in jaxpr.outvars}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(id(var) in needed for var in equation.outvars):
            live.append(equation)
            needed |= {id(var) for var in equation.invars}
    return live[::-1]
