"""What benchmarks/bench.py makes of its times, on made-up ones; its counts of operations, against XLA's."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hotspots, turns
from benchmarks.speed import growth, picture, results, subjects

ROOT = Path(__file__).parents[1]


def turn(*ms: float) -> dict:
    return {"ms": list(ms), "processor_ms": [2 * each for each in ms]}


def test_summary_is_of_all_steps_and_ratio_of_rounds():
    ours = results.summary([turn(1, 2, 9), turn(4, 5, 6), turn(3, 3, 3)])
    theirs = results.summary([turn(4, 4, 4), turn(5, 5, 5), turn(2, 2, 2)])
    assert ours == {"ms": 3, "least_ms": 1, "processor_ms": 6, "rounds": [2, 5, 3]}
    # A slow second round counts on both sides: 2/4, 5/5, 3/2.
    assert results.ratio(ours, theirs) == {"ratio": 1.0, "range": [0.5, 1.5]}


def test_rounds_of_two_sides_have_to_be_as_many():
    with pytest.raises(ValueError):
        turns.ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7, 2.0])
def test_exponent_of_a_power_law(power):
    sizes = [3, 7, 20, 55]
    values = [5.0 * size**power for size in sizes]
    assert results.exponent(sizes, values) == pytest.approx(power, abs=1e-12)


def test_exponent_is_that_of_least_squares_and_the_end_of_the_last_two():
    sizes, values = [1, 2, 4, 8], [10.0, 11.0, 16.0, 31.0]
    fitted = np.polyfit(np.log(sizes), np.log(values), 1)[0]
    found = results.exponents(sizes, values)
    assert found["all"] == pytest.approx(fitted, rel=1e-9)  # rounding of the two ways to sum
    assert found["end"] == pytest.approx(np.log2(31 / 16), rel=1e-9)


def test_share_of_the_peak():
    assert results.share(gflop=80.0, ms=400.0, product_gflops=500.0) == pytest.approx(0.4)


def made_up() -> dict:
    compared = {"theirs": 20.0, "ratio": 1.25, "range": [1.2, 1.3]}
    faster = {"theirs": 50.0, "ratio": 0.5, "range": [0.4, 0.6]}
    figures = {
        "train step": {
            "unit": "ms",
            "ours": 25.0,
            "rivals": {"PyTorch": compared, "Keras": faster},
            "most": 1.0,
            "aim": 0.7,
        },
        "inference, batch 1": {"unit": "ms", "ours": 25.0, "rivals": {"PyTorch": compared}},
    }
    fits = {
        name: {"all": 1.01, "end": 1.1}
        for name in ("time", "time_arithmetic", "memory", "memory_arithmetic")
    }
    points = [{"batch": size, "ms": 3.0 * size, "gflop": 1.0 * size} for size in (2, 4)]
    return {
        "cnn": {"title": "CNN", "figures": figures},
        "growth_batch": {"title": "GPT, batch", "sizes": [2, 4], "exponents": fits, "points": points},
    }  # fmt: skip


def test_tables_say_what_was_missed_where_something_was_asked():
    lines = results.table(made_up()).splitlines()
    assert lines[2:] == [
        "| CNN: train step | 25.0 ms | 20.0 ms, PyTorch | 1.25 MISSED | 1.0 | 0.7 |",
        "| CNN: train step | 25.0 ms | 50.0 ms, Keras | 0.50 | 1.0 | 0.7 |",
        "| CNN: inference, batch 1 | 25.0 ms | 20.0 ms, PyTorch | 1.25 | - | - |",
    ]
    assert "| GPT, batch | 2, 4 | 1.01 (end 1.10), 1.01 (end 1.10) |" in results.growth_table(
        made_up()
    )
    assert "| 4 | 12.0 | 4.00 |" in results.points_table(made_up())


def test_picture_is_drawn_with_growth_and_without(tmp_path):
    picture.draw({"subjects": made_up()}, tmp_path / "a.png")
    picture.draw({"subjects": {"cnn": made_up()["cnn"]}}, tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.08563, "0.0856"), (1.25, "1.25"), (17.87, "17.9"), (999.6, "1,000"), (12, "12"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value, text):
    assert results.shown(value) == text


def operations(model, x) -> float:
    """What XLA counts in a forward pass, before it compiles it."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return jax.jit(lambda p: model.apply(p, x, train=False)).lower(params).cost_analysis()["flops"]


def test_counts_of_operations(monkeypatch):
    from research.models import cnn, resnet, vit
    from research.ops import conv

    monkeypatch.setattr(conv, "_tiles_are_fast", lambda *_: False)  # which multiplies less
    given = dict(num_classes=10, dtype=jnp.float32, axis_name=None)
    # XLA counts norms, activations and sums as well, some per cent; and leaves out what a kernel multiplies with the
    # zeros around a picture, a ninth and more on small ones.
    for count, model, shape, low, high in (
        (subjects.cnn(2), cnn.Model(**given), (2, 28, 28, 1), 1.0, 1.05),
        (subjects.resnet18(2), resnet.Model(**given), (2, 32, 32, 3), 0.85, 1.0),
        (subjects.vit(2), vit.Model(**given), (2, 32, 32, 3), 1.0, 1.08),
    ):
        assert low <= operations(model, jnp.zeros(shape)) / count < high


def test_hotspots_of_a_trace():
    program = """
  %dot.3 = f32[8]{0} dot(%a, %b), metadata={op_name="jit(step)/jvp(M)/block_0/up/dot_general"}
  ROOT %dot.4 = f32[8]{0} dot(%a), metadata={op_name="jit(step)/jvp(M)/block_1/up/dot_general"}
  %add.1 = f32[] add(%c), metadata={op_name="jit(step)/transpose(jvp(M))/norm/add_any"}
"""
    ran = (("dot.3", 1, 2000), ("dot.4", 2, 4000), ("add.1", 1, 1000), ("dot.3", 1, 2000))
    ran += (("while.7", 1, 5000),)  # what runs in a loop is there by itself
    events = [
        {"ph": "X", "tid": tid, "dur": dur, "args": {"hlo_op": name}} for name, tid, dur in ran
    ]
    events.append({"ph": "X", "tid": 1, "dur": 9999, "args": {}})  # what Python does
    rows = hotspots.table(events, hotspots.places(program), steps=2)
    up = "jvp(M)/block_N/up/dot_general"
    assert rows[0] == (4.0, pytest.approx(8 / 9), 1.5, 2, "dot", up)
    assert rows[1][3:] == (1, "add", "backward jit(step)/transpose(jvp(M))/norm/add_any")
    assert len(rows) == 2
    assert [hotspots.kind(row) for row in rows] == ["products", "element by element"]
    copied = (*rows[0][:4], "wrapped_copy", "")
    assert hotspots.kind(copied) == "copies, transpositions"


def test_arithmetic_of_growth():
    shape = growth.BASE
    longer = [{**shape, "length": 2**i} for i in range(10, 24)]
    for cost in (growth.gpt_gflop, growth.gpt_mb):
        twice = cost({**shape, "batch": 1 << 20}) / cost({**shape, "batch": 1 << 19})
        assert twice == pytest.approx(2, rel=1e-3)  # parameters do not grow with the batch
        found = results.exponents([s["length"] for s in longer], [cost(s) for s in longer])
        assert found["end"] == pytest.approx(2, abs=0.01)  # attention, once all else is small


def test_a_side_answers_and_one_that_is_gone_is_told_of():
    side = turns.Worker(sys.executable, "speed/ours.py")
    assert side.ask(do="memory")["peak_mb"] > 5
    with pytest.raises(turns.Ended, match="ours.py"):
        side.ask(do="train", steps=1)  # before there is anything to train
    side.close()


def test_help_lists_the_subjects():
    command = [sys.executable, "benchmarks/bench.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "minilm" in done.stdout and "--rounds" in done.stdout
