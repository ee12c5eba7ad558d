"""Augmentations against Pillow, scipy and slices of padded arrays."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from research.data import augment as A
from research.data import mixing
from research.data import randaugment as R
from research.data.warp import affine, warp

OFF = dict(flip=False, shift=0, crop=0, rotate=0.0, cutout=0, randaugment=0, magnitude=9.0)
ALL = dict(flip=True, shift=2, crop=3, rotate=20.0, cutout=4, randaugment=2, magnitude=9.0)


def pictures(b=6, h=12, w=14, c=3, seed=0):
    """Smooth pictures, as interpolation wants them, with a little noise."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(b, h, w, c)), (0, 2, 2, 0))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return ((smooth - low) / (high - low) * 200 + rng.integers(0, 40, (b, h, w, c))).astype(
        np.uint8
    )


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def same_within(got, expected, levels):
    expected = np.asarray(expected).reshape(got.shape)
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= levels


@pytest.mark.parametrize(
    "options", [ALL, *({**OFF, key: ALL[key]} for key in OFF if key != "magnitude")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_does_not_depend_on_its_batch(options, channels):
    images = pictures(b=24, c=channels)
    epochs, examples = np.repeat([3, 4], 12), np.arange(100, 124)
    before = images.copy()
    whole = A.augment(images, options, seed=1, epochs=epochs, examples=examples)
    np.testing.assert_array_equal(images, before)
    assert whole.dtype == np.uint8 and (whole != images).any()
    for rows in (np.random.default_rng(0).permutation(24), np.array([17]), np.array([5, 2, 21])):
        part = A.augment(
            images[rows], options, seed=1, epochs=epochs[rows], examples=examples[rows]
        )
        np.testing.assert_array_equal(part, whole[rows])
    for change in (dict(seed=2), dict(epochs=epochs + 2), dict(examples=examples + 24)):
        given = dict(seed=1, epochs=epochs, examples=examples) | change
        assert (A.augment(images, options, **given) != whole).any()


def test_nothing_switched_on_changes_nothing():
    images = pictures()
    got = A.augment(images, OFF, seed=0, epochs=np.zeros(6, int), examples=np.arange(6))
    np.testing.assert_array_equal(got, images)


def test_flip_mirrors_half_of_them_as_pillow_does():
    images = np.repeat(pictures(b=1), 2000, axis=0)
    got = A.augment(
        images, OFF | {"flip": True}, seed=0, epochs=np.zeros(2000, int), examples=np.arange(2000)
    )
    mirrored = np.asarray(ImageOps.mirror(pillow(images[0])))
    flipped = (got == mirrored).all((1, 2, 3))
    assert (flipped | (got == images).all((1, 2, 3))).all()
    assert stats.binomtest(int(flipped.sum()), 2000).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_is_a_roll_whose_edge_is_black(channels):
    images = pictures(b=25, c=channels)
    y, x = (a.ravel() for a in np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)))
    got = A.shift(images, 2, (np.stack([y, x], 1) + 2.5) / 5)
    for i in range(25):
        padded = np.pad(images[i], ((2, 2), (2, 2), (0, 0)))
        expected = np.roll(padded, (-y[i], -x[i]), (0, 1))[2:-2, 2:-2]
        np.testing.assert_array_equal(got[i], expected)


def test_every_shift_is_as_likely():
    dot = np.zeros((5000, 9, 9, 1), np.uint8)
    dot[:, 4, 4] = 255
    got = A.augment(
        dot, OFF | {"crop": 3}, seed=0, epochs=np.zeros(5000, int), examples=np.arange(5000)
    )
    assert (got.sum((1, 2, 3)) == 255).all()
    assert stats.chisquare(got.sum((0, 3))[1:8, 1:8].ravel() / 255).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_warp_against_scipy(channels):
    images = pictures(b=20, h=11, w=16, c=channels)
    rng = np.random.default_rng(1)
    matrices = affine(20) + rng.normal(size=(20, 2, 3)) * [0.3, 0.3, 3.0]
    got = warp(images, matrices)
    centre = np.array([5.0, 7.5])
    for image, matrix, result in zip(images, matrices, got, strict=True):
        linear, moved = matrix[::-1, 1::-1], matrix[::-1, 2]  # scipy counts (row, column)
        for c in range(channels):
            expected = ndimage.affine_transform(
                image[..., c].astype(float),
                linear,
                centre + moved - linear @ centre,
                order=1,
                mode="grid-constant",
            )
            assert (
                np.abs(result[..., c] - expected).max() < 0.51
            )  # rounding, and float32 coordinates


def test_rotation_goes_the_way_of_pillow():
    images = pictures(b=5, h=15, w=15, c=1)
    degrees = np.array([0.0, 90.0, 180.0, -90.0, 25.0])
    got = A.rotate(images, degrees)
    for i in range(4):
        np.testing.assert_array_equal(got[i], np.rot90(images[i], int(degrees[i] // 90)))
    expected = np.asarray(pillow(images[4]).rotate(25.0, Image.Resampling.BILINEAR))
    inside = (
        slice(4, 11),
        slice(4, 11),
    )  # at the edge, Pillow doesn't blend with what lies outside
    same_within(got[4][inside], expected[inside], 1)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_blackens_one_square(side):
    h, w = 9, 12
    centres = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    got = A.cutout(np.full((h * w, h, w, 2), 7, np.uint8), side, (centres + 0.5) / [h, w])
    for (y, x), result in zip(centres, got, strict=True):
        expected = np.full((h, w, 2), 7)
        top, left = y - side // 2, x - side // 2
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = 0
        np.testing.assert_array_equal(result, expected)


def enhanced(enhancer):
    return lambda image, signed: enhancer(image).enhance(1 + 0.9 * signed)


PILLOW = {  # operation -> Pillow's, and by how many levels they may differ
    "identity": (lambda image, signed: image, 0),
    "brightness": (enhanced(ImageEnhance.Brightness), 1),
    "colour": (enhanced(ImageEnhance.Color), 1),
    "contrast": (enhanced(ImageEnhance.Contrast), 1),
    "sharpness": (enhanced(ImageEnhance.Sharpness), 1),
    "posterize": (lambda image, signed: ImageOps.posterize(image, 8 - round(4 * abs(signed))), 0),
    "solarize": (lambda image, signed: ImageOps.solarize(image, 255 * (1 - abs(signed))), 0),
    "autocontrast": (lambda image, signed: ImageOps.autocontrast(image), 0),
    "equalize": (lambda image, signed: ImageOps.equalize(image), 0),
}


@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, c) for name in PILLOW for c in (1, 3) if (name, c) != ("colour", 1)],
)
def test_operations_on_values_against_pillow(name, channels):
    images = pictures(b=7, h=32, w=30, c=channels)
    images[5] = 60  # one value: nothing to stretch
    images[6] = 0
    signed = np.array([-1.0, -0.55, 0.0, 0.3, 1.0, 0.7, 0.7])
    operation, levels = PILLOW[name]
    got = R.OPERATIONS[name](images, signed)
    for image, s, result in zip(images, signed, got, strict=True):
        same_within(result, operation(pillow(image), float(s)), levels)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometric_operations_against_pillow(name):
    images = pictures(b=4, h=31, w=31, c=1)
    signed = np.array([-1.0, -0.4, 0.3, 1.0])
    got = R.OPERATIONS[name](images, signed)
    for image, s, result in zip(images, signed, got, strict=True):
        shear, move = 0.3 * s, np.trunc(150 / 331 * 31 * s)
        matrix = {  # from (x, y) with the corner as origin, to where the value is taken from
            "shear_x": (1, shear, -15.5 * shear, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, -15.5 * shear),
            "translate_x": (1, 0, move, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, move),
        }.get(name)
        old = pillow(image)
        how = Image.Resampling.BILINEAR
        new = (
            old.transform(old.size, Image.Transform.AFFINE, matrix, how)
            if matrix
            else old.rotate(30 * s, how)
        )
        inside = (
            np.asarray(new) * result[..., 0] > 0
        )  # at the edge, Pillow doesn't blend with what lies outside
        assert inside.mean() > 0.3
        levels = np.abs(np.asarray(new).astype(int) - result[..., 0])[
            ndimage.binary_erosion(inside)
        ]
        assert levels.max() <= 1


def test_randaugment_draws_every_operation_as_often(monkeypatch):
    counts = dict.fromkeys(R.OPERATIONS, 0)

    def counting(name):
        def operation(images, signed):
            counts[name] += len(images)
            assert set(np.abs(signed)) == {0.5}
            return images

        return operation

    monkeypatch.setattr(R, "OPERATIONS", {name: counting(name) for name in counts})
    A.augment(
        np.zeros((7000, 3, 3, 3), np.uint8),
        OFF | {"randaugment": 2, "magnitude": 15.0},
        seed=0,
        epochs=np.zeros(7000, int),
        examples=np.arange(7000),
    )
    assert sum(counts.values()) == 14000
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_mixup_weights_follow_the_beta_distribution():
    mixes = [mixing.draw_mix(0, n, 8, 4, 4, mixup=0.4, cutmix=0.0) for n in range(1500)]
    assert stats.kstest([m.weight for m in mixes], stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert all(m.box is None and sorted(m.partners) == list(range(8)) for m in mixes)


def test_cutmix_weight_is_the_area_that_is_left():
    images, others = np.zeros((2, 40, 60, 1), np.float32), np.ones((2, 40, 60, 1), np.float32)
    shares = []
    for n in range(1000):
        mix = mixing.draw_mix(0, n, 2, 40, 60, mixup=0.0, cutmix=1.0)
        mixed = mixing.mix_images(images, others, mix)
        assert mix.weight == pytest.approx(1 - mixed.mean(), abs=1e-6)
        assert (mixed == mixed[:1]).all()
        shares.append(mixed[0, ..., 0].mean())
    # A side r = sqrt(1 - weight) with a centre anywhere keeps r - r^2 / 4 on average inside of the
    # picture; squared, and averaged over a uniform weight: 1/2 - 1/5 + 1/48. Whole pixels cost a little.
    assert np.mean(shares) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)


def test_a_coin_decides_between_mixup_and_cutmix():
    boxes = [mixing.draw_mix(0, n, 5, 20, 30, mixup=1.0, cutmix=1.0).box for n in range(400)]
    assert stats.binomtest(sum(box is None for box in boxes), 400).pvalue > 1e-3
