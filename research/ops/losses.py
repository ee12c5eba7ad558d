"""Losses per example, in float32 whatever comes in. B examples (or any leading shape), C classes."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """-sum_c target_c * log softmax(logits)_c, with target = (1 - s) * onehot(label) + s / C.

    The gradient is softmax minus target, element by element: the gradient of an index would be a scatter, which no
    device likes.

    Args:
      logits: [..., C].
      labels: integers [...] in 0..C-1.
      label_smoothing: s, the share of the weight spread evenly over all classes.

    Returns:
      float32 [...]. Stable for logits of any finite size. NaN, as the gradient is, for a label that is no class: a run
      stops there and names the example.
    """
    return _forward(logits, labels, label_smoothing)[0]


def _forward(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> tuple:
    wide = logits.astype(jnp.float32)
    size = jax.nn.logsumexp(wide, -1)
    size = jnp.where(_is_class(labels, logits), size, jnp.nan)
    own = jnp.take_along_axis(logits, labels[..., None], -1, mode="clip")[..., 0]
    own = own.astype(jnp.float32)
    losses = size - own
    if label_smoothing:
        # (1-s) * (lse - z_label) + s * (lse - mean z) = lse - z_label + s * (z_label - mean z)
        losses = losses + label_smoothing * (own - wide.mean(-1))
    return losses, (logits, labels, size)


def _backward(label_smoothing: float, saved: tuple, g: jax.Array) -> tuple:
    logits, labels, size = saved
    classes = logits.shape[-1]
    chosen = jnp.arange(classes) == labels[..., None]  # [..., C]
    share = label_smoothing / classes
    target = jnp.where(chosen, 1.0 - label_smoothing + share, share)
    change = jnp.exp(logits.astype(jnp.float32) - size[..., None]) - target
    return (change * g[..., None]).astype(logits.dtype), None


softmax_cross_entropy.defvjp(_forward, _backward)


def _is_class(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def foretold(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether `logits.argmax(-1) == labels`, the first of equal logits counting.

    By comparisons with the label's logit, since XLA's CPU compiler does not vectorise an argmax.

    Args:
      logits: [..., C].
      labels: integers [...] in 0..C-1.

    Returns:
      bool [...]. False for a label that is no class.
    """
    index, label = jnp.arange(logits.shape[-1]), labels[..., None]
    chosen = jnp.take_along_axis(logits, label, -1, mode="clip")
    first = jnp.all(jnp.where(index < label, logits < chosen, logits <= chosen), -1)
    return first & _is_class(labels, logits)


def distillation(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), what a student has yet to learn of its teacher.

    The factor T^2 makes up for gradients that shrink as 1 / T^2, so that a weight beside another loss means the same
    at every temperature: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), section 2.

    Args:
      student, teacher: logits [..., C].
      temperature: T, more than 0.

    Returns:
      float32 [...]. 0 where both are equal.
    """
    student, teacher = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        for logits in (student, teacher)
    )
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), -1)


def blocked_cross_entropy(
    logits_of: Callable[[jax.Array, jax.Array], jax.Array],
    states: jax.Array,
    labels: jax.Array,
    *,
    block: int,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """`softmax_cross_entropy` and `foretold` of logits that are never there all at once.

    Blocks of tokens pass one after another through what makes logits, and again in the backward pass, where each adds
    its part to the gradients by the states and by whatever `logits_of` closes over. Memory is that of one block's
    logits and of one more gradient of the matrix; time a third more of the products with it.

    Args:
      logits_of: (a block of states [B, t, D], the block's number int32 []) -> logits [B, t, V].
      states: [B, T, D].
      labels: integers [B, T] in 0..V-1.
      block: how many tokens of each row a block holds.
      label_smoothing: as of `softmax_cross_entropy`.

    Returns:
      Losses float32 [B, T] and bool [B, T], whether the label is the first of the largest logits.
    """
    rows, length = labels.shape
    count = -(-length // block)
    short = count * block - length

    def cut(x: jax.Array) -> jax.Array:  # [B, T, ...] -> [count, B, block, ...]
        x = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, count, block, *x.shape[2:]).swapaxes(0, 1)

    def one(states: jax.Array, labels: jax.Array, number: jax.Array) -> tuple:
        logits = logits_of(states, number)
        losses = softmax_cross_entropy(logits, labels, label_smoothing)
        return losses, foretold(jax.lax.stop_gradient(logits), labels)

    again = jax.checkpoint(one, prevent_cse=False)
    parts = (cut(states), cut(labels), jnp.arange(count))
    found = jax.lax.scan(lambda _, part: (None, again(*part)), None, parts)[1]
    losses, hits = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in found)
    return losses, hits
