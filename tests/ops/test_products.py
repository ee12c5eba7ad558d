"""Attention and dense against NumPy and jax.nn; the setting of memory in a process of its own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from research.ops.attention import attention
from research.ops.dense import dense


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


def test_freed_memory_is_kept():
    # 64 MB touched and freed, then again in a thread, as XLA's are: the second time hardly a page of 4096 bytes is new.
    code = """
import resource, threading
import numpy as np
from research.ops.memory import keep_freed_memory
taken, faults = keep_freed_memory(), []
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(8_000_000, 1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
touch()
thread = threading.Thread(target=touch)
thread.start()
thread.join()
assert not taken or faults[1] < 200, faults
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_free_memory_is_given_back():
    code = """
import numpy as np
from pathlib import Path
from research.ops.memory import give_back, keep_freed_memory
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
taken = keep_freed_memory()
x, above = np.full(8_000_000, 1.0), np.ones(1000)  # 61 MB, and something that keeps it from the heap's end
del x
kept = resident()
give_back()
assert not taken or kept - resident() > 50, (kept, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
