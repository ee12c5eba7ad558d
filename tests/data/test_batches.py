"""Batches against permutations, formulas in float64 and themselves cut into parts."""

from types import SimpleNamespace

import numpy as np
import pytest

from research.config import defaults
from research.data.batches import inputs, make_batches
from research.data.rows import order
from research.errors import UserError, UserErrors

SIZE, BATCH, EVAL = 40, 12, 8  # a batch in four reaches over the end of an epoch
EVERYTHING = dict(
    flip=True, shift=1, crop=2, rotate=10.0, cutout=3, randaugment=1, mixup=0.4, cutmix=1.0
)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def store(request):
    rng, channels = np.random.default_rng(0), request.param
    where = rng.permutation(60)
    return SimpleNamespace(
        images=rng.integers(0, 256, (60, 9, 10, channels), dtype=np.uint8),
        labels=rng.integers(0, 5, 60).astype(np.int32),
        splits={"train": np.sort(where[:SIZE]), "test": np.sort(where[SIZE:])},
        mean=np.linspace(0.2, 0.6, channels, dtype=np.float32),
        std=np.linspace(0.3, 0.2, channels, dtype=np.float32),
    )


@pytest.fixture
def make(store):
    def make(augment=None, loader="memory", **given):
        data = defaults().data
        data.loader = loader
        data.augment.update(augment or {})
        data.workers = given.pop("workers", 0)
        sizes = dict(seed=5, batch_size=BATCH, eval_batch_size=EVAL) | given
        return make_batches(store, data, **sizes)

    return make


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize(("size", "batch_size"), [(40, 12), (7, 7), (10, 1), (9, 8)])
def test_every_epoch_sees_each_example_once(size, batch_size):
    batches = [order(3, n, batch_size, size) for n in range(5 * size)]
    indices, epochs = (np.concatenate(part) for part in zip(*batches, strict=True))
    for epoch in range(5):
        one = indices[epoch * size : (epoch + 1) * size]
        assert sorted(one) == list(range(size))
        assert (epochs[epoch * size : (epoch + 1) * size] == epoch).all()
        expected = np.random.Generator(np.random.Philox(key=[3, epoch])).permutation(size)
        np.testing.assert_array_equal(one, expected)


def test_order_needs_no_history():
    ahead = [order(3, n, 12, 40)[0] for n in range(9)]
    for n in (8, 0, 5, 3):
        np.testing.assert_array_equal(order(3, n, 12, 40)[0], ahead[n])
    assert (order(4, 0, 12, 40)[0] != ahead[0]).any()


def test_a_plain_batch_is_the_normalised_pictures(store, make):
    train_batch, _ = make()
    for n in range(5):
        batch = train_batch(n, slice(None))
        ids = store.splits["train"][order(5, n, BATCH, SIZE)[0]]
        expected = (store.images[ids] / 255.0 - store.mean.astype(float)) / store.std.astype(float)
        np.testing.assert_allclose(batch["image"], expected, rtol=0, atol=1e-6)  # values up to 4
        np.testing.assert_array_equal(batch["id"], ids)
        np.testing.assert_array_equal(batch["label"], store.labels[ids])
        np.testing.assert_array_equal(batch["mask"], np.ones(BATCH))
        kinds = {key: str(value.dtype) for key, value in batch.items()}
        assert kinds == {"image": "float32", "label": "int32", "id": "int32", "mask": "float32"}


@pytest.mark.parametrize(
    "augment",
    [{}, EVERYTHING, dict(mixup=1.0), dict(cutmix=1.0)],
    ids=["plain", "everything", "mixup", "cutmix"],
)
@pytest.mark.parametrize("parts", [2, 4, 12])
def test_parts_joined_are_the_whole(make, augment, parts):
    train_batch, eval_batch = make(augment)
    each, each_eval = BATCH // parts, max(EVAL // parts, 1)
    for n in range(4):
        whole = train_batch(n, slice(None))
        cut = [train_batch(n, slice(i * each, (i + 1) * each)) for i in range(parts)]
        same(whole, {key: np.concatenate([part[key] for part in cut]) for key in whole})
    for n in range(3):
        whole = eval_batch("test", n, slice(0, EVAL))
        cut = [eval_batch("test", n, slice(i, i + each_eval)) for i in range(0, EVAL, each_eval)]
        same(whole, {key: np.concatenate([part[key] for part in cut]) for key in whole})


@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=["plain", "augmented"])
def test_the_grain_loader_makes_the_same_bits(store, make, augment):
    records = [{"image": image} for image in store.images]
    memory, grain = make(augment), make(augment, loader="grain", records=records)
    for n in range(4):
        same(memory[0](n, slice(None)), grain[0](n, slice(None)))
        same(memory[0](n, slice(3, 7)), grain[0](n, slice(3, 7)))
        for rows in (slice(None), slice(6, 8)):  # in the last batch, no picture at all
            same(memory[1]("test", n % 3, rows), grain[1]("test", n % 3, rows))


def test_a_source_that_reads_many_at_once_is_asked_once(store, make):
    asked = []

    class Records:
        def __getitems__(self, numbers):
            asked.append(numbers)
            return [{"image": store.images[i]} for i in numbers]

    batch = make(loader="grain", records=Records())[0](0, slice(None))
    assert asked == [batch["id"].tolist()]


def test_an_example_is_augmented_anew_in_each_epoch(make):
    train_batch, _ = make(dict(shift=4))
    seen: dict[int, set[bytes]] = {}
    for n in range(10):  # three epochs
        batch = train_batch(n, slice(None))
        for number, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            seen.setdefault(number, set()).add(image.tobytes())
    assert len(seen) == SIZE
    assert np.mean([len(pictures) for pictures in seen.values()]) > 2.8


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pictures_lie_between_the_two(store, make, kind):
    plain, mixed = make()[0], make({kind: 1.0})[0]
    for n in range(6):
        one, two = plain(n, slice(None)), mixed(n, slice(None))
        weight = two["mix"][0]
        assert (two["mix"] == weight).all() and 0 <= weight <= 1
        same(
            {key: one[key] for key in ("id", "label", "mask")},
            {key: two[key] for key in ("id", "label", "mask")},
        )
        for row in range(BATCH):
            if kind == "mixup":
                candidates = (
                    weight.astype(float) * one["image"][row]
                    + (1 - weight.astype(float)) * one["image"]
                )
                errors = np.abs(candidates - two["image"][row]).max((1, 2, 3))
            else:
                from_partner = (two["image"][row] == one["image"]).all(-1)
                kept = (two["image"][row] == one["image"][row]).all(-1)
                errors = (~(from_partner | kept)).sum((1, 2))
            fits = errors < 1e-5
            assert fits.any()
            assert two["label_b"][row] in one["label"][fits]


def test_evaluation_is_in_order_padded_and_masked(store, make):
    _, eval_batch = make(EVERYTHING)  # no augmentation here
    batches = [eval_batch("test", n, slice(0, EVAL)) for n in range(3)]
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    np.testing.assert_array_equal(joined["mask"], [1] * 20 + [0] * 4)
    np.testing.assert_array_equal(joined["id"][:20], store.splits["test"])
    assert (joined["id"][20:] == -1).all()
    np.testing.assert_array_equal(joined["label"][:20], store.labels[store.splits["test"]])
    expected = (
        store.images[store.splits["test"]] / 255.0 - store.mean.astype(float)
    ) / store.std.astype(float)
    np.testing.assert_allclose(joined["image"][:20], expected, rtol=0, atol=1e-6)
    assert joined["image"].shape[0] == 24 and (joined["image"][20:] == 0).all()


def test_a_users_pictures_are_batched_like_the_stores(store, make):
    test = store.splits["test"]
    given = inputs(store.images[test], [f"{i}.png" for i in test], store, EVAL)
    assert given.names == [f"{i}.png" for i in test]
    for n in range(3):
        mine, theirs = given.batch(n, slice(0, EVAL)), make()[1]("test", n, slice(0, EVAL))
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        np.testing.assert_array_equal(mine["mask"], theirs["mask"])
        assert mine.keys() == theirs.keys()


def test_what_does_not_fit_is_said_at_once(make):
    with pytest.raises(
        UserError,
        match=r"^config.train.batch_size is 4,096 but the training split holds 40 examples: set ",
    ):
        make(batch_size=4096)
    with pytest.raises(UserErrors) as caught:
        make(dict(shift=9, crop=10, cutout=8), workers=2)
    assert [line.split(" is ")[0] for line in caught.value.lines] == [
        "config.data.augment.shift",
        "config.data.augment.crop",
        "config.data.workers",
    ]
