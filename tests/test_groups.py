"""Which parameters are trained: patterns, factors, times, and what is wrong with them."""

import pytest

from research.config import defaults, resolve
from research.durations import Durations
from research.errors import UserErrors
from research.groups import Treatment, depths, layerwise, probe, treatments

PATHS = [
    "block_0/kernel",
    "block_1/kernel",
    "block_10/kernel",
    "head/bias",
    "head/kernel",
    "stem/kernel",
]
LAYERS = (r"stem/", r"block_(\d+)/", r"head/")


def treat(*groups, total=100):
    to_steps = Durations(10, 1000, total_steps=total).to_steps
    return treatments(groups, PATHS, LAYERS, to_steps, total)


def complaints(*groups):
    with pytest.raises(UserErrors) as caught:
        treat(*groups)
    return caught.value.lines


def test_the_first_match_decides_and_nothing_means_everything():
    found = treat((r"head/", {"lr": 2.0}), (r"block_1/", {}), (r".*", None))
    assert found["head/kernel"] == Treatment(r"head/", 2.0, 0)
    assert found["block_1/kernel"] == Treatment(r"block_1/", 1.0, 0)
    # Patterns start where the path does, and 'block_1/' is not block_10.
    assert found["block_10/kernel"].start is None and found["stem/kernel"].start is None
    assert set(treat().values()) == {Treatment(r".*", 1.0, 0)}
    assert treat(*probe()) == treat((r"head/", {}), (r".*", None))


def test_layers_are_counted_in_the_order_of_the_model_and_numbers_as_numbers():
    assert depths(PATHS, LAYERS) == {
        "stem/kernel": 0,
        "block_0/kernel": 1,
        "block_1/kernel": 2,
        "block_10/kernel": 3,
        "head/bias": 4,
        "head/kernel": 4,
    }


def test_layerwise_decay_is_a_power_of_the_layers_above():
    found = treat(*layerwise(decay=0.8, lr=0.5))
    assert {path: round(t.lr, 6) for path, t in found.items()} == {
        "stem/kernel": 0.2048,
        "block_0/kernel": 0.256,
        "block_1/kernel": 0.32,
        "block_10/kernel": 0.4,
        "head/bias": 0.5,
        "head/kernel": 0.5,
    }


@pytest.mark.parametrize(
    ("duration", "step"), [("30%", 30), ("percent=30", 30), ("steps=7", 7), ("epochs=0.5", 50)]
)
def test_a_group_thaws_at_a_duration(duration, step):
    assert treat((r"head/", {}), (r".*", {"unfreeze_at": duration}))["stem/kernel"].start == step


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([(r"head/", {}), (r"haed/", {}), (r".*", None)], ["'haed/'", "did you mean 'head/"]),
        ([(r".*", {}), (r"head/", {})], ["'head/'", "before it"]),
        ([(r".*", None)], ["everything is frozen"]),
        ([(r".*", {"unfreeze_at": "10%"})], ["from the first step on"]),
        ([(r"head/", {})], ["no pattern matches", "block_0/kernel"]),
        ([(r"(", {})], ["regular expression"]),
        ([(r".*", {"lrr": 1.0})], ["'lrr'", "did you mean 'lr'"]),
        ([(r".*", {"lr": 0})], ["more than 0"]),
        ([(r".*", {"lr": "fast"})], ["'fast'"]),
        ([(r"head/", {}), (r".*", {"unfreeze_at": "3 days"})], ["'3 days'", "UNIT=NUMBER"]),
        ([(r"head/", {}), (r".*", {"unfreeze_at": "steps=100"})], ["after the last of 100 steps"]),
        (["head/"], ["no pair"]),
        ([(r".*", 3)], ["neither dict"]),
    ],
)
def test_mistakes_are_told_in_one_line(groups, words):
    lines = complaints(*groups)
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


def test_several_mistakes_are_told_together():
    assert len(complaints((r"a/", {}), (r"b/", {}), (r".*", None))) == 2


def test_groups_go_through_a_config_and_json(tmp_path):
    from research.config import from_json, to_json

    config = defaults()
    config.optimizer.groups = ((r"head/", dict(lr=0.5, unfreeze_at="10%")), (r".*", None))
    resolved, mistakes = resolve(config)
    assert not mistakes
    assert from_json(to_json(resolved)) == resolved
    text = "((r'head/', {'lr': 0.5, 'unfreeze_at': '10%'}), (r'.*', None))"
    typed, mistakes = resolve(defaults(), [("optimizer.groups", text)])
    assert not mistakes and typed.optimizer.groups == resolved.optimizer.groups
    found = treat((r"stem/", {}), *typed.optimizer.groups)
    assert found["head/bias"] == Treatment("head/", 0.5, 10)
