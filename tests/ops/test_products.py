"""Attention and dense against NumPy and jax.nn; the setting of memory in a process of its own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.attention import attention
from research.ops.dense import COLUMNS, ROWS, dense


def test_attention():
    q, k, v = (
        np.random.default_rng(i).standard_normal((2, t, 3, 8)).astype(np.float32)
        for i, t in enumerate((5, 6, 6))
    )
    out, weights = attention(q, k, v, weights=True)
    assert attention(q, k, v)[1] is None
    logits = np.einsum("bthe,bshe->bhts", q.astype(np.float64), k) / np.sqrt(8)
    odds = np.exp(logits)
    expected = odds / odds.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    np.testing.assert_allclose(out, np.einsum("bhts,bshe->bthe", expected, v), rtol=1e-4, atol=1e-5)
    ours = jax.grad(lambda *a: (attention(*a)[0] ** 2).sum(), (0, 1, 2))(q, k, v)
    theirs = jax.grad(lambda *a: (jax.nn.dot_product_attention(*a) ** 2).sum(), (0, 1, 2))(q, k, v)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_dense():
    x, kernel = np.random.default_rng(0).standard_normal((2, 3, 4)), np.ones((4, 5))
    np.testing.assert_allclose(dense(x, kernel), x @ kernel, rtol=1e-6)


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_a_product_with_few_and_with_many_rows(monkeypatch, rows, tied):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    rng = np.random.default_rng(0)
    x, kernel, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((rows, COLUMNS), (COLUMNS, 5), (rows, 5))
    )

    def product(x, kernel):
        return dense(x[None], kernel.T if tied else kernel)[0]

    y, back = jax.vjp(product, x, kernel.T if tied else kernel)
    dx, dkernel = back(g)
    wide = x.astype(np.float64), kernel.astype(np.float64), g.astype(np.float64)
    # float32 sums of 256 and 1,024 terms around 1.
    np.testing.assert_allclose(y, wide[0] @ wide[1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dx, wide[2] @ wide[1].T, rtol=1e-5, atol=1e-5)
    expected = wide[0].T @ wide[2]
    np.testing.assert_allclose(dkernel, expected.T if tied else expected, rtol=1e-5, atol=5e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gradients_products_read_their_left_sides_row_by_row_on_a_cpu(monkeypatch, tied):
    """When this fails, the compiler sees through `_turned`: measure it anew (docs/performance.md)."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jnp.ones((4, ROWS // 4, COLUMNS))
    kernel = jnp.ones((32, COLUMNS) if tied else (COLUMNS, 32))

    def loss(x, kernel):
        x = x * 2 + 1  # which is not to be computed again, inside of a branch
        return jnp.square(dense(x, kernel.T if tied else kernel)).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert "lhs_contracting_dims={1}" in text and "lhs_contracting_dims={0}" not in text
    assert " conditional(" in text


def test_a_wide_product_of_bfloat16_is_not_rounded_and_its_gradients_are_as_without():
    rng = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for shape in ((2, 3, 64), (64, 5), (2, 3, 5))
    )
    y, back = jax.vjp(lambda *a: dense(*a, wide=True), x, kernel)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)  # float32 sums of 64 terms
    _, plain = jax.vjp(dense, x, kernel)
    for found, other in zip(back(g.astype(jnp.float32)), plain(g), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, other)
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    np.testing.assert_array_equal(dense(x, kernel, wide=True), dense(x, kernel))


@pytest.mark.parametrize("count", [8_000_000, pytest.param(300_000_000, marks=pytest.mark.slow)])
def test_freed_memory_is_kept(count):
    # 64 MB touched and freed, then again in a thread, as XLA's are: the second time hardly a page of 4096 bytes is new.
    code = f"""
import resource, threading
import numpy as np
from research.ops.memory import keep_freed_memory
taken, faults = keep_freed_memory(), []
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full({count}, 1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
touch()
thread = threading.Thread(target=touch)
thread.start()
thread.join()
assert not taken or faults[1] < 200, faults
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and malloc is told on Linux only")
def test_free_memory_is_given_back():
    code = """
import numpy as np
from pathlib import Path
from research.ops.memory import keep_freed_memory, settle
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
taken = keep_freed_memory()
x, above = np.full(8_000_000, 1.0), np.ones(1000)  # 61 MB, and something that keeps it from the heap's end
del x
kept = resident()
settle(0)
assert not taken or kept - resident() > 50, (kept, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is told on Linux only")
@pytest.mark.parametrize("shift", [0, 16, 32, 48])
def test_after_settling_small_things_lie_apart_from_the_block(shift):
    # Of 20,000 pieces of 16 KB every second is free. After settling none of them is handed out any more, and a block of
    # 64 MB comes to lie where it was before, though something of 2 MB, which stays, was put beside it and after it. The
    # shift moves the heap against the multiples of 64 bytes at which such blocks begin.
    code = f"""
import ctypes
from research.ops.memory import keep_freed_memory, settle
taken = keep_freed_memory()
lib = ctypes.CDLL(None)
lib.malloc.restype, lib.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
lib.memalign.restype, lib.memalign.argtypes = ctypes.c_void_p, [ctypes.c_size_t] * 2
lib.free.argtypes = [ctypes.c_void_p]
pieces = [lib.malloc(16 << 10) for _ in range(20_000)]
lib.malloc((64 << 20) + {shift})
for piece in pieces[::2]:
    lib.free(piece)
settle(64 << 20)
inside = sum(min(pieces) <= lib.malloc(16 << 10) <= max(pieces) for _ in range(1000))
assert not taken or inside == 0, inside
places = []
for _ in range(8):
    block = lib.memalign(64, 64 << 20)
    lib.malloc(2 << 20)
    lib.malloc(100)
    lib.free(block)
    places.append(block)
    lib.malloc(2 << 20)
assert not taken or len(set(places)) == 1, places
settle(32 << 20)  # of another program
other = lib.memalign(64, 32 << 20)
assert not taken or places[0] <= other <= places[0] + (32 << 20), (places, other)
lib.free(other)
settle(256 << 20)
assert not taken or lib.memalign(64, 256 << 20) > places[0]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and malloc is told on Linux only")
def test_the_temporaries_of_a_step_are_there_once(tmp_path):
    # 94 MB of temporaries, and after each step something small that stays, as a batch or the figures would. The first
    # such thing may lie in their gap: twice 94, and 60 for the compiler. JAX's own way makes it 550 and more.
    code = """
from pathlib import Path
from research.engine import parallel
parallel.configure()
import jax, jax.numpy as jnp
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
@jax.jit
def step(x):
    wide = jnp.sort(jnp.broadcast_to(x, (6000, 4096)), 0)
    return x + 1e-9 * wide.sum(0)
x, kept = jnp.ones(4096) + 1, []
before = peak()
for _ in range(6):
    x = step(x).block_until_ready()
    kept.append(x + 1)
assert peak() - before < 260, (before, peak())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"ROOTSTOCK_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
