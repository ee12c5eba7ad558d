"""Where arrays live. The only module that names a device, a mesh or an axis.

'mesh' is jit with NamedSharding, the batch cut over the axis 'data' and the state on every device; 'pmap' maps the same
pure step over a leading axis of devices. Both hide behind `Parallel`.
"""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.data import cache
from research.errors import UserError
from research.ops.memory import keep_freed_memory, settle
from research.ops.platform import on_cpu

AXIS = "data"
MOST_COMPILED = 4 << 30  # bytes of compiled programs that are kept
# LLVM prefers vectors of 256 bits where 512 are there, for older processors' sake; a step took up to 6% longer.
WIDE = {"xla_cpu_prefer_vector_width": 512}


class Parallel(NamedTuple):
    kind: str
    device_count: int  # over all processes
    axis_name: (
        str | None
    )  # what a sum over devices goes by inside a step; None where the compiler does it
    rows: Callable[
        [int], slice
    ]  # batch size -> the rows of the global batch that this process feeds
    put_batch: Callable[[Any], Any]  # those rows on the host -> the global batch on devices
    put_state: Callable[[Any], Any]  # a tree on the host -> the same on every device
    # a tree on the host, or its shapes -> the shapes of what `put_state` makes of it
    like: Callable[[Any], Any]
    take_state: Callable[[Any], Any]  # the inverse
    take: Callable[[Any], Any]  # outputs [B, ...] or metrics [] -> NumPy
    # step, state, batch -> what .compile() turns into the compiled step, which eats its state
    lower_train: Callable[[Callable, Any, Any], Any]
    map: Callable[
        [Callable], Callable
    ]  # (state-like, batch) -> [B, ...] outputs, compiled for devices

    def compile_train(self, step: Callable, state: Any, batch: Any) -> Any:
        """Returns the compiled step."""
        return compiled(self.lower_train(step, state, batch))


def compiled(lowered: Any) -> Any:
    """Returns the compiled form of a step or a prediction; the heap is put in order for it."""
    program = lowered.compile()
    analysis = program.memory_analysis() if on_cpu() else None  # others' temporaries lie elsewhere
    # Of one device; those of a process allocate theirs together.
    settle(jax.local_device_count() * analysis.temp_size_in_bytes if analysis else 0)
    return program


def configure(*, cpu_devices: int = 0) -> None:
    """Settings of JAX that must stand before it is first used; above all the persistent compilation cache.

    On a CPU a call of a compiled program returns when its result is there. If JAX runs it in a thread of its own
    instead, the temporaries of a step are freed a little after its result is known, when those of the next are
    allocated already: twice the memory, and more where the heap falls to pieces. Batches are made beside it in a
    thread of ours either way. Where JAX has its CPU devices already, this changes nothing.
    """
    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    programs = cache.home() / "xla"
    # Not jax_compilation_cache_max_size: with it whatever is kept first reads a further file for each program that is
    # there, and on jax 0.10 nothing is kept any more once one of these is missing, as all are of earlier programs.
    _keep_within(programs, MOST_COMPILED)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if cpu_devices:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError:  # the backend is up already: good if it has them
            if jax.local_device_count("cpu") < cpu_devices:
                raise UserError(
                    f"config.parallel.cpu_devices={cpu_devices}: JAX is already running on "
                    f"{jax.local_device_count('cpu')} in this process"
                ) from None


@functools.cache
def _keep_within(folder: Path, most: int) -> None:
    """Once in a process, and beside what else it does: a look at thousands of files takes tens of milliseconds."""
    threading.Thread(target=cache.keep_within, args=(folder, most), daemon=True).start()


def make(kind: str, devices: int = 0) -> Parallel:
    """Returns a layout over the first `devices` devices; 0 is all.

    Raises:
      UserError: fewer devices are there.
    """
    present = jax.devices()
    if devices > len(present):
        raise UserError(
            f"config.parallel.devices={devices}: {len(present)} {present[0].platform} device(s) are here; "
            "on a CPU, --config.parallel.cpu_devices makes virtual ones"
        )
    chosen = present[: devices or len(present)]
    return _pmap(chosen) if kind == "pmap" else _mesh(chosen)


def _rows(chosen: list) -> Callable[[int], slice]:
    mine = [d.process_index == jax.process_index() for d in chosen]
    first, count = mine.index(True), sum(mine)

    def rows(batch_size: int) -> slice:
        each = batch_size // len(chosen)
        return slice(first * each, (first + count) * each)

    return rows


def _mesh(chosen: list) -> Parallel:
    mesh = jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)
    whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    alone = jax.process_count() == 1
    options = WIDE if on_cpu() else None

    def put_batch(batch):
        if alone:
            return jax.device_put(batch, cut)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(cut, x), batch)

    def put_state(tree):
        # A copy: the step donates its state, and on a CPU a put may share the host's memory.
        return jax.tree.map(lambda x: jax.device_put(np.array(x), whole), tree)

    def take(tree):
        if alone:
            return jax.device_get(tree)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)

    def like(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)

    def lower_train(step, state, batch):
        mapped = jax.jit(
            step, donate_argnums=0, out_shardings=(whole, whole), compiler_options=options
        )
        return mapped.lower(state, batch)

    return Parallel(
        kind="mesh",
        device_count=len(chosen),
        axis_name=None,
        rows=_rows(chosen),
        put_batch=put_batch,
        put_state=put_state,
        like=like,
        take_state=jax.device_get,
        take=take,
        lower_train=lower_train,
        map=lambda function: jax.jit(function, out_shardings=cut, compiler_options=options),
    )


def _pmap(chosen: list) -> Parallel:
    local = [d for d in chosen if d.process_index == jax.process_index()]

    def put_batch(batch):
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)

    def put_state(tree):
        return jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x), (len(local), *np.shape(x))), tree
        )

    def take(tree):
        host = jax.device_get(tree)  # metrics [D], the same on each device; outputs [D, B/D, ...]
        return jax.tree.map(lambda x: x[0] if x.ndim == 1 else x.reshape(-1, *x.shape[2:]), host)

    def like(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(local), *x.shape), x.dtype), tree)

    def lower_train(step, state, batch):
        mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=0, devices=chosen)
        return mapped.lower(state, batch)

    return Parallel(
        kind="pmap",
        device_count=len(chosen),
        axis_name=AXIS,
        rows=_rows(chosen),
        put_batch=put_batch,
        put_state=put_state,
        like=like,
        take_state=lambda tree: jax.device_get(jax.tree.map(lambda x: x[0], tree)),
        take=take,
        lower_train=lower_train,
        map=lambda function: jax.pmap(function, axis_name=AXIS, devices=chosen),
    )
