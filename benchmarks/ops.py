"""Times the project's forms of shared arithmetic against the plain ones, both sides in turn, and prints medians.

    python benchmarks/ops.py [--repeats=15] [--plain-memory]

Each row is one jitted call of a value, its gradient or a whole train step, on the same arrays. `--plain-memory` leaves
malloc as it is; research/ops/memory.py says what that costs. On GPU and TPU both sides run the same form.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from research.ops.memory import keep_freed_memory

CONVOLUTIONS = (  # B, H = W, C, D, kernel, stride, padding
    (128, 28, 1, 32, 3, 1, "VALID"),
    (128, 13, 32, 64, 3, 1, "VALID"),
    (128, 5, 64, 64, 3, 1, "VALID"),
    (64, 32, 3, 64, 3, 1, "SAME"),
    (64, 32, 3, 192, 4, 4, "VALID"),
    (64, 32, 64, 64, 3, 1, "SAME"),
    (64, 16, 128, 128, 3, 1, "SAME"),
    (64, 8, 256, 256, 3, 1, "SAME"),
    (64, 4, 512, 512, 3, 1, "SAME"),
    (64, 32, 64, 128, 3, 2, "SAME"),
    (64, 8, 256, 512, 3, 2, "SAME"),
    (64, 16, 128, 256, 1, 1, "VALID"),
    (64, 32, 64, 128, 1, 2, "VALID"),
)
DEPTHWISE = (  # B, H = W, C, kernel, stride: blocks of EfficientNet-Lite0 at pictures of 128x128
    (32, 64, 32, 3, 1),
    (32, 64, 96, 3, 2),
    (32, 32, 144, 5, 2),
    (32, 16, 240, 3, 2),
    (32, 8, 480, 5, 1),
    (32, 8, 672, 5, 2),
    (32, 4, 1152, 3, 1),
)
PRODUCTS = ((32, 64, 32, 16), (32, 64, 16, 96), (32, 8, 480, 112), (32, 4, 320, 1280))  # B, H, C, D


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--plain-memory", action="store_true")
    given = options.parse_args()
    kept = not given.plain_memory and keep_freed_memory()

    import jax

    print(
        f"jax {jax.__version__}, {jax.default_backend()}, freed memory {'kept' if kept else 'returned'}"
    )
    print(f"{'ms, median of ' + str(given.repeats):50}{'plain':>9}{'ours':>9}{'ratio':>8}")
    rows = (
        *(convolutions, products, depthwise, pools, attentions, tiles, norms, activations),
        *(recurrences, embeddings, losses, blocks, steps),
    )
    for name, plain, ours in (row for rows_of in rows for row in rows_of()):
        a, b = in_turn(plain, ours, given.repeats)
        print(f"{name:50}{a:9.2f}{b:9.2f}{a / b:8.2f}", flush=True)


def in_turn(plain: Callable, ours: Callable, repeats: int) -> tuple[float, float]:
    """Medians in ms of two functions without arguments, called in turn after a warm-up."""
    import jax

    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 2):
        for function, measured in zip((plain, ours), times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if i >= 2:
                measured.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def gradient(function: Callable, *given) -> Callable:
    """A call of the gradient by all of `given`, for a fixed random gradient of the output."""
    import jax

    out = jax.eval_shape(function, *given)
    g = jax.random.normal(jax.random.key(9), out.shape, out.dtype)
    return functools.partial(jax.jit(lambda g, *given: jax.vjp(function, *given)[1](g)), g, *given)


def megabytes(*calls: functools.partial) -> str:
    """What XLA says each keeps on its way."""
    sizes = [
        call.func.lower(*call.args).compile().memory_analysis().temp_size_in_bytes for call in calls
    ]
    return ", ".join(f"{size / 2**20:.0f}" for size in sizes) + " MB"


def normal(*shape: int):
    import jax

    return jax.random.normal(jax.random.key(sum(shape)), shape)


def convolutions():
    from research.ops.conv import conv2d, conv2d_plain

    for batch, side, c, d, kernel, stride, padding in CONVOLUTIONS:
        x, k = normal(batch, side, side, c), normal(kernel, kernel, c, d)
        name = (
            f"conv {batch}x{side}x{side}, {c}->{d}, {kernel}x{kernel}/{stride}: gradient by kernel"
        )
        plain, ours = (
            gradient(lambda k, f=f, x=x, s=stride, p=padding: f(x, k, stride=s, padding=p), k)
            for f in (conv2d_plain, conv2d)
        )
        yield name, plain, ours


def products():
    """Convolutions with 1x1 kernels: the value and the gradient by the pictures."""
    import jax

    from research.ops.conv import conv2d, conv2d_plain

    for batch, side, c, d in PRODUCTS:
        x, k = normal(batch, side, side, c), normal(1, 1, c, d)
        name = f"conv {batch}x{side}x{side}, {c}->{d}, 1x1/1"
        value = [functools.partial(jax.jit(f), x, k) for f in (conv2d_plain, conv2d)]
        yield f"{name}: value", *value
        by_x = [gradient(lambda x, f=f, k=k: f(x, k), x) for f in (conv2d_plain, conv2d)]
        yield f"{name}: gradient by pictures", *by_x


def depthwise():
    import jax

    from research.ops.depthwise import depthwise_conv2d, depthwise_conv2d_plain

    for batch, side, c, kernel, stride in DEPTHWISE:
        x, k = normal(batch, side, side, c), normal(kernel, kernel, 1, c)
        name = f"depthwise {batch}x{side}x{side}x{c}, {kernel}x{kernel}/{stride}"
        both = [
            functools.partial(f, stride=stride) for f in (depthwise_conv2d_plain, depthwise_conv2d)
        ]
        yield f"{name}: value", *(functools.partial(jax.jit(f), x, k) for f in both)
        yield f"{name}: gradients", *(gradient(f, x, k) for f in both)


def pools():
    import jax

    from research.ops.conv_pool import conv_relu_pool, conv_relu_pool_plain
    from research.ops.pool import max_pool, max_pool_plain

    for side, c, d in ((28, 1, 32), (13, 32, 64)):
        given = normal(128, side, side, c), normal(3, 3, c, d), normal(d)
        both = [
            functools.partial(f, padding="VALID") for f in (conv_relu_pool_plain, conv_relu_pool)
        ]
        name = f"conv 128x{side}x{side}, {c}->{d}, relu and max-pool in one"
        yield f"{name}: value", *(functools.partial(jax.jit(f), *given) for f in both)
        if c > 1:
            yield f"{name}: gradients", *(gradient(f, *given) for f in both)
        else:  # pictures need no gradient
            x, *given = given
            yield f"{name}: gradients", *(gradient(functools.partial(f, x), *given) for f in both)
    for shape in ((128, 26, 26, 32), (128, 11, 11, 64)):
        x = normal(*shape)
        yield (
            f"max-pool 2x2 {'x'.join(map(str, shape))}: gradient",
            gradient(max_pool_plain, x),
            gradient(max_pool, x),
        )


def attentions():
    import jax

    from research.ops.attention import attention

    for shape in ((64, 65, 3, 64), (8, 256, 8, 32)):
        q, k, v = (normal(*shape) + i for i in range(3))
        name = f"attention {'x'.join(map(str, shape))}: gradient"
        ours = gradient(lambda *a: attention(*a)[0], q, k, v)
        yield name, gradient(jax.nn.dot_product_attention, q, k, v), ours


def tiles():
    """Attention that keeps no [T, T], beside that which does; causal, one example, 8 heads of 32."""
    import jax.numpy as jnp

    from research.ops.attention import attention, view_of

    for length in (512, 1024, 2048, 4096):
        q, k, v = (normal(1, length, 8, 32) + i for i in range(3))
        places = jnp.arange(length)
        view = view_of(places, places[None], None, 0)
        both = [
            gradient(lambda *a, t=t: attention(*a, causal=True, tiles=t)[0], q, k, v)
            for t in (None, (view, 128))
        ]
        yield f"causal 1x{length}, by tiles, {megabytes(*both)}: gradient", *both


def norms():
    import jax
    import jax.numpy as jnp

    from research.ops.norm import layer_norm

    def plain(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale + bias

    for width in (256, 384, 768):
        given = normal(2048, width), jnp.ones(width), jnp.zeros(width)
        ours = gradient(lambda *a: layer_norm(*a, 1e-5), *given)
        yield f"layer norm 2048x{width}: gradient", gradient(plain, *given), ours


def activations():
    import jax

    from research.ops.activations import gelu

    x = normal(2048, 1024)
    plain = functools.partial(jax.nn.gelu, approximate=False)
    yield "gelu 2048x1024: value", *(functools.partial(jax.jit(f), x) for f in (plain, gelu))
    yield "gelu 2048x1024: gradient", gradient(plain, x), gradient(gelu, x)


def embeddings():
    """A table's gradient as it stays, a scatter ('plain'), and by sorting first, which is not used."""
    import jax
    import jax.numpy as jnp

    for rows, width, count in ((4096, 128, 4096), (4096, 384, 16384), (30000, 384, 2048)):
        tokens = jax.random.randint(jax.random.key(1), (count,), 0, rows)
        g = normal(count, width)

        @jax.jit
        def scattered(tokens, g, rows=rows):
            return jnp.zeros((rows, g.shape[1])).at[tokens].add(g)

        @jax.jit
        def sorted_first(tokens, g, rows=rows):
            order = jnp.argsort(tokens)
            return jax.ops.segment_sum(g[order], tokens[order], rows, indices_are_sorted=True)

        name = f"embedding {rows}x{width}, {count} tokens, sorted: gradient"
        yield name, *(functools.partial(f, tokens, g) for f in (scattered, sorted_first))


def recurrences():
    """A cell over time, and the product of its input before it: B 64, T 64, width 128 in and 256 out."""
    import jax.numpy as jnp

    from research.ops.recurrence import GATES, input_share, recurrence, recurrence_plain
    from research.ops.segments import masks_of

    masks, _ = masks_of(jnp.ones((64, 64), jnp.int32))
    for cell, gates in GATES.items():
        x, w, u = normal(64, 64, 128), normal(128, gates * 256), normal(256, gates * 256)
        given = x, w / 128**0.5, u / 256**0.5

        def run(form, x, w, u, cell=cell):
            return form(cell, input_share(x, w, jnp.zeros(w.shape[1])), u, masks=masks)[0]

        plain, ours = (functools.partial(run, form) for form in (recurrence_plain, recurrence))
        yield f"{cell} 64x64, 128 -> 256: gradient", gradient(plain, *given), gradient(ours, *given)


def losses():
    import jax
    import optax

    from research.ops.losses import softmax_cross_entropy

    for batch, classes in ((128, 10), (2048, 4096)):
        z, labels = normal(batch, classes), jax.numpy.arange(batch) % classes
        plain = gradient(
            lambda z, y=labels: optax.softmax_cross_entropy_with_integer_labels(z, y), z
        )
        ours = gradient(lambda z, y=labels: softmax_cross_entropy(z, y), z)
        yield f"cross-entropy {batch}x{classes}: gradient", plain, ours


def blocks():
    """Losses over a large vocabulary, logits kept or made in blocks; width 256."""
    import jax

    from research.ops.dense import dense
    from research.ops.losses import blocked_cross_entropy, softmax_cross_entropy

    for classes, count, block in ((4096, 2048, 512), (32000, 1024, 512), (128000, 512, 256)):
        states, matrix = normal(1, count, 256), normal(256, classes)
        labels = jax.random.randint(jax.random.key(1), (1, count), 0, classes)

        def whole(states, matrix, labels=labels):
            return softmax_cross_entropy(dense(states, matrix), labels)

        def cut(states, matrix, labels=labels, block=block):
            given = lambda x, _: dense(x, matrix), states, labels
            return blocked_cross_entropy(*given, block=block)[0]

        both = [gradient(f, states, matrix) for f in (whole, cut)]
        yield f"loss {count}x{classes} in blocks, {megabytes(*both)}: gradient", *both


def steps():
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from research.models import cnn
    from research.ops.losses import softmax_cross_entropy

    class Plain(nn.Module):
        """The default of research/models/cnn.py as it is usually written."""

        @nn.compact
        def __call__(self, x):
            for i, features in enumerate((32, 64, 64)):
                x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
                if i < 2:
                    x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
            return nn.Dense(10)(x)

    def step(model: nn.Module, loss: Callable, **how) -> Callable:
        x, labels, tx = normal(128, 28, 28, 1), jnp.arange(128) % 10, optax.adam(1e-3)
        params = model.init(jax.random.key(0), x, **how)
        held = [params, tx.init(params)]

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def update(params, state):
            grads = jax.grad(lambda p: loss(model.apply(p, x, **how), labels).mean())(params)
            changes, state = tx.update(grads, state)
            return optax.apply_updates(params, changes), state

        def run():
            held[:] = update(*held)
            return held

        return run

    plain = step(Plain(), optax.softmax_cross_entropy_with_integer_labels)
    model = cnn.Model(num_classes=10, dtype=jnp.float32, axis_name=None)
    yield (
        "CNN 28x28x1, batch 128, Adam: train step",
        plain,
        step(model, softmax_cross_entropy, train=True),
    )


if __name__ == "__main__":
    main()
