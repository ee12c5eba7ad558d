"""Which form runs where, and that a program for a GPU holds cuDNN's attention; no GPU is needed to compile for one."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from research.ops import platform
from research.ops.attention import attention
from research.ops.platform import attention_form

SHAPE = (2, 256, 4, 64)
PLAIN = {"softcap": 0.0, "dropped": False, "weights": False}


@pytest.mark.parametrize(
    ("backend", "dtype", "shape", "changed", "form"),
    [
        ("cpu", jnp.float32, SHAPE, {}, "rows"),
        ("cpu", jnp.bfloat16, SHAPE, {"softcap": 2.0}, "rows"),
        ("cpu", jnp.float32, SHAPE, {"dropped": True}, "plain"),
        ("cpu", jnp.float32, SHAPE, {"weights": True}, "plain"),
        ("gpu", jnp.bfloat16, SHAPE, {}, "cudnn"),
        ("gpu", jnp.float16, SHAPE, {}, "cudnn"),
        ("gpu", jnp.float32, SHAPE, {}, "plain"),
        ("gpu", jnp.bfloat16, (2, 255, 4, 64), {}, "plain"),
        ("gpu", jnp.bfloat16, (2, 256, 4, 60), {}, "plain"),
        ("gpu", jnp.bfloat16, (2, 256, 4, 256), {}, "plain"),
        ("gpu", jnp.bfloat16, SHAPE, {"softcap": 2.0}, "plain"),
        ("gpu", jnp.bfloat16, SHAPE, {"dropped": True}, "plain"),
        ("gpu", jnp.bfloat16, SHAPE, {"weights": True}, "plain"),
        ("tpu", jnp.bfloat16, SHAPE, {}, "plain"),
    ],
)
def test_the_form_of_attention(monkeypatch, backend, dtype, shape, changed, form):
    monkeypatch.setattr(platform, "_backend", lambda: backend)
    how = {**PLAIN, **changed}
    assert attention_form(shape, shape, jnp.dtype(dtype), **how) == form
    with platform.portable():
        assert attention_form(shape, shape, jnp.dtype(dtype), **how) == "plain"


@pytest.mark.parametrize(
    ("capability", "form"), [("9.0", "cudnn"), ("7.5", "plain"), ("gfx90a", "plain")]
)
def test_only_gpus_that_have_it_get_cudnns_form(monkeypatch, capability, form):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    device = mock.Mock(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention_form(SHAPE, SHAPE, jnp.dtype(jnp.bfloat16), **PLAIN) == form


@pytest.mark.parametrize("kv", [4, 2])
def test_a_program_for_a_gpu_calls_cudnn_forwards_and_backwards(monkeypatch, kv):
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *a: True)
    monkeypatch.setattr(platform, "_backend", lambda: "gpu")

    def loss(q, k, v, mask):
        return attention(q, k, v, mask=mask, causal=True)[0].astype(jnp.float32).sum()

    q = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 256, kv, 64), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 256, 256), bool)
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        lowered = gradient.trace(q, k, k, mask).lower(lowering_platforms=("cuda",))
    calls = set(re.findall(r"__cudnn\$fmha\w*", lowered.as_text()))
    assert any(name.endswith("Softmax") for name in calls)
    assert any(name.endswith("SoftmaxBackward") for name in calls)
