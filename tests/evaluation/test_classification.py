"""Metrics against scikit-learn's, and against loops written from the definitions."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.metrics as sk

from research.evaluation import classification


def predictions(n=500, c=7, seed=0, empty=()):
    """Logits, labels and losses; the classes in `empty` have no example."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([k for k in range(c) if k not in empty], n).astype(np.int32)
    logits = rng.normal(size=(n, c)).astype(np.float32)
    logits[np.arange(n), labels] += 1.0
    return logits, labels, rng.exponential(size=n).astype(np.float32)


def softmax(row):
    odds = [math.exp(float(x) - float(max(row))) for x in row]
    return [x / sum(odds) for x in odds]


def loop_calibration_error(logits, labels, bins=15):
    right, confidence, n = [0.0] * bins, [0.0] * bins, [0] * bins
    for row, label in zip(logits, labels, strict=True):
        p = softmax(row)
        b = next(b for b in range(bins) if max(p) <= (b + 1) / bins)
        n[b] += 1
        confidence[b] += max(p)
        right[b] += p.index(max(p)) == label
    return sum(abs(r - p) for r, p, k in zip(right, confidence, n, strict=True) if k) / len(labels)


@pytest.mark.parametrize("empty", [(), (2, 6)])
def test_quick_agrees_with_scikit_learn(empty):
    logits, labels, losses = predictions(empty=empty)
    metrics = classification.quick(logits, labels, losses, top_k=3)
    assert list(metrics) == ["loss", "accuracy", "top3_accuracy"]
    assert metrics["loss"] == pytest.approx(losses.mean(dtype=np.float64))
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(labels, logits.argmax(1)))
    expected = sk.top_k_accuracy_score(labels, logits, k=3, labels=range(7))
    assert metrics["top3_accuracy"] == pytest.approx(expected)
    assert all(type(value) is float for value in metrics.values())


def test_top_k_is_absent_where_it_says_nothing():
    logits, labels, losses = predictions(c=5)
    assert "top5_accuracy" not in classification.quick(logits, labels, losses, top_k=5)
    assert "top4_accuracy" in classification.quick(logits, labels, losses, top_k=4)


def test_ties_go_to_the_lower_class_as_in_a_stable_sort():
    rng = np.random.default_rng(1)
    logits, labels = rng.integers(0, 3, (300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    order = np.argsort(-logits, axis=1, kind="stable")
    metrics = classification.quick(logits, labels, np.zeros(300), top_k=3)
    hits = [label in row[:3] for label, row in zip(labels, order, strict=True)]
    assert metrics["top3_accuracy"] == np.mean(hits)
    assert metrics["accuracy"] == np.mean(logits.argmax(1) == labels)


def test_a_diverged_model_is_never_right():
    logits = np.full((4, 6), np.nan, np.float32)
    metrics = classification.quick(logits, np.zeros(4, np.int32), np.full(4, np.nan), top_k=5)
    assert metrics["accuracy"] == metrics["top5_accuracy"] == 0
    assert math.isnan(metrics["loss"])


@pytest.mark.parametrize("empty", [(), (0, 3)])
def test_full_agrees_with_scikit_learn(empty):
    logits, labels, losses = predictions(empty=empty)
    metrics = classification.full(logits, labels, losses, top_k=3, resamples=50)
    guesses = logits.argmax(1)
    for average in ("macro", "micro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(sk, f"{name}_score")(labels, guesses, average=average, zero_division=0)
            assert metrics[f"{name}_{average}"] == pytest.approx(score), (name, average)
    assert metrics["calibration_error"] == pytest.approx(
        loop_calibration_error(logits, labels), abs=1e-6
    )
    assert metrics.items() >= classification.quick(logits, labels, losses, 3).items()
    for name in ("loss", "accuracy", "top3_accuracy", "f1_macro"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    plain = classification.full(logits, labels, losses, 3, resamples=0)
    assert not any(name.endswith(("_low", "_high")) for name in plain)


def test_bootstrap_statistics_equal_scikit_learn_on_each_resample():
    """The fast sums by group are the real metric of the resampled examples, classes lost included."""
    logits, labels, _ = predictions(n=25, c=6)
    guesses = logits.argmax(1)
    rng = np.random.default_rng(3)
    chosen = rng.integers(0, 25, (40, 25))
    counts = np.stack([np.bincount(row, minlength=25) for row in chosen]).astype(float)
    f1 = classification._macro_f1(labels, guesses, 6)(counts)
    error = classification._calibration(logits, labels)(counts)
    for r, i in enumerate(chosen):
        assert f1[r] == pytest.approx(
            sk.f1_score(labels[i], guesses[i], average="macro", zero_division=0)
        )
        assert error[r] == pytest.approx(loop_calibration_error(logits[i], labels[i]), abs=1e-6)


def test_a_confidence_on_the_edge_of_a_bin_belongs_below():
    edge = [0.0, 0, 0, 0, 0, -np.inf]  # confidence 1/5 = 3/15, and right
    inside = [0.0, 0, 0, 0, 0, -1e-9]  # confidence 1/6, between 2/15 and 3/15, and wrong
    error = classification.calibration_error(np.array([edge, inside]), np.array([0, 3]))
    assert error == pytest.approx(abs((1 - 1 / 5) + (0 - 1 / 6)) / 2)


def test_per_class_and_confusion_agree_with_scikit_learn():
    logits, labels, _ = predictions(empty=(4,))
    guesses, names = logits.argmax(1), [f"class {k}" for k in range(7)]
    report = sk.classification_report(
        labels, guesses, labels=range(7), target_names=names, output_dict=True, zero_division=0
    )
    for name, support, precision, recall, f1 in classification.per_class(logits, labels, names):
        expected = report[name]
        assert (support, precision, recall, f1) == pytest.approx(
            tuple(expected[key] for key in ("support", "precision", "recall", "f1-score"))
        )
    matrix = classification.confusion(logits, labels)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, guesses, labels=range(7)))
    assert matrix.dtype.kind == "i"


def test_full_is_fast_enough_for_a_usual_test_set():
    logits, labels, losses = predictions(n=10_000, c=10)
    classification.full(logits, labels, losses, resamples=2)  # imports
    start = time.perf_counter()
    classification.full(logits, labels, losses)
    assert time.perf_counter() - start < 5  # 0.35 s on an idle core


def test_the_figures_need_neither_scikit_learn_nor_scipy():
    """Importing them takes longer than the whole end of a run."""
    code = """
import sys
import numpy as np
from research.evaluation import classification
logits, labels = np.eye(4)[[0, 1, 2, 3, 3]], np.array([0, 1, 2, 3, 0])
classification.full(logits, labels, np.ones(5))
classification.per_class(logits, labels, "abcd")
print([name for name in ("sklearn", "scipy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
