"""torch.nn.RNN, GRU and LSTM with the same weights: the same outputs and the same gradients.

float32; sums over up to 48 products in another order, step after step: some 1e-6 for outputs of size 1, and for
gradients, which are sums over all steps and rows, in proportion. 1e-5 of the largest leaves room for other machines.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.rnn import Model

pytestmark = pytest.mark.parity
VOCAB, E, D, T = 13, 7, 12, 9
LENGTHS = [9, 4, 1, 6]
KINDS = {"elman": "RNN", "gru": "GRU", "lstm": "LSTM"}


def original(cell, depth, bidirectional):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    kind = getattr(torch.nn, KINDS[cell])
    net = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(VOCAB, E),
            "rnn": kind(E, D, depth, batch_first=True, bidirectional=bidirectional),
            "head": torch.nn.Linear(D * (1 + bidirectional), VOCAB),
        }
    )
    with torch.no_grad():
        for p in net["rnn"].parameters():
            p.mul_(2)  # far enough from linear
    return torch, net


def ours_of(cell, depth, bidirectional, value):
    """Our tree of `value(name)`, an array for each name of theirs; two biases become one where they are added up."""

    def direction(i, end):
        at = lambda part: np.asarray(value(f"rnn.{part}_l{i}{end}"))  # noqa: E731
        bias, recurrent = at("bias_ih"), {"kernel": at("weight_hh").T}
        if cell == "gru":
            other = at("bias_hh")
            bias = bias + np.concatenate([other[: 2 * D], 0 * other[2 * D :]])
            recurrent["bias"] = other[2 * D :]
        else:
            bias = bias + at("bias_hh")
        return {"input": {"kernel": at("weight_ih").T, "bias": bias}, "recurrent": recurrent}

    params = {"embed": {"embedding": np.asarray(value("embed.weight"))}}
    for i in range(depth):
        params[f"layer_{i}"] = {"forward": direction(i, "")}
        if bidirectional:
            params[f"layer_{i}"]["backward"] = direction(i, "_reverse")
    head = {"kernel": np.asarray(value("head.weight")).T, "bias": np.asarray(value("head.bias"))}
    return params | {"head": head}


def close(ours, theirs):
    ours, theirs = (jax.tree.leaves_with_path(tree) for tree in (ours, theirs))
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()), err_msg=path)


@pytest.mark.parametrize(("depth", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("cell", sorted(KINDS))
def test_outputs_and_gradients(cell, depth, bidirectional):
    torch, net = original(cell, depth, bidirectional)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (4, T))
    real = np.arange(T) < np.array(LENGTHS)[:, None]
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    packed = pack(
        net["embed"](torch.from_numpy(tokens)), LENGTHS, batch_first=True, enforce_sorted=False
    )
    h, last = net["rnn"](packed)
    h, _ = unpack(h, batch_first=True, total_length=T)
    last = last[0] if cell == "lstm" else last
    last = torch.cat([last[-2], last[-1]], -1) if bidirectional else last[-1]
    each, pooled = net["head"](h), net["head"](last)
    (torch.from_numpy(real[..., None]) * torch.sin(each)).sum().backward(retain_graph=True)
    theirs = {}
    state = {name: p.detach().numpy() for name, p in net.named_parameters()}
    grad = lambda: {name: p.grad.numpy().copy() for name, p in net.named_parameters()}  # noqa: E731
    theirs["mlm" if bidirectional else "lm"] = each.detach().numpy(), grad()
    net.zero_grad()
    torch.sin(pooled).sum().backward()
    theirs["classify"] = pooled.detach().numpy(), grad()

    params = ours_of(cell, depth, bidirectional, state.__getitem__)
    for head, (expected, by) in theirs.items():
        model = Model(
            *(VOCAB, VOCAB, head, jnp.float32, None),
            **dict(cell=cell, embedding=E, width=D, depth=depth, bidirectional=bidirectional),
        )
        for left in (False, True):
            x, segments = tokens, real.astype(np.int32)
            if left:  # the same rows, padded on the other side
                x = np.stack([np.roll(row, T - n) for row, n in zip(x, LENGTHS, strict=True)])
                segments = segments[:, ::-1]

            @jax.jit
            def run(params, x=x, segments=segments, model=model, head=head):
                def loss(params):
                    out = model.apply({"params": params}, x, train=False, segments=segments)
                    weights = 1 if head == "classify" else (segments > 0)[..., None]
                    return jnp.sum(weights * jnp.sin(out)), out

                (_, out), by = jax.value_and_grad(loss, has_aux=True)(params)
                return out, by

            out, found = run(params)
            mine = out if head == "classify" else np.asarray(out)[segments > 0]
            close(mine, expected if head == "classify" else expected[real])
            # A bias of ours has the gradient of either of theirs.
            half = lambda name, by=by: (  # noqa: E731
                by[name] if cell == "gru" or "bias_hh" not in name else 0 * by[name]
            )
            expected_by = ours_of(cell, depth, bidirectional, half)
            if cell == "gru":
                for i in range(depth):
                    for end, side in (("", "forward"), ("_reverse", "backward"))[
                        : 1 + bidirectional
                    ]:
                        expected_by[f"layer_{i}"][side]["input"]["bias"] = by[
                            f"rnn.bias_ih_l{i}{end}"
                        ]
            close(found, expected_by)
