import io

import numpy as np
import pytest
from PIL import Image

from research.data.duplicates import exact_groups, find, is_blank


def smooth(rng, n, size, channels):
    """Pictures such as cameras make: neighbouring pixels are alike."""
    small = rng.integers(0, 256, (n, 4, 4, channels), np.uint8)
    big = []
    for picture in small:
        planes = [
            np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
            for plane in np.moveaxis(picture, -1, 0)
        ]
        big.append(np.stack(planes, -1))
    return np.stack(big)


def noisy(rng, picture, sigma):
    return np.clip(np.rint(picture + rng.normal(0, sigma, picture.shape)), 0, 255).astype(np.uint8)


def brute_force(images):
    """All pairs that correlate by 0.995 and are not equal, by NumPy's own correlation."""
    flat = images.reshape(len(images), -1).astype(float)
    varied = np.flatnonzero(flat.std(1) > 0)
    correlation = np.corrcoef(flat[varied])
    pairs = zip(*np.nonzero(np.triu(correlation >= 0.995, 1)), strict=True)
    return {
        (varied[a], varied[b]) for a, b in pairs if (images[varied[a]] != images[varied[b]]).any()
    }


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (20, 3), (6, 1)])
def test_near_pairs_are_those_of_brute_force(size, channels, monkeypatch):
    monkeypatch.setattr("research.data.duplicates._BLOCK", 16)  # many blocks, as of a large set
    rng = np.random.default_rng(size)
    originals = smooth(rng, 150, size, channels)
    # Noise on both sides of the limit, in random amounts, and two exact copies, which must each get all the partners.
    copies = [noisy(rng, picture, rng.uniform(0, 12)) for picture in originals[:80]]
    images = np.concatenate([originals, np.stack(copies), originals[:2], 0 * originals[:2]])
    images = images[rng.permutation(len(images))]
    expected = brute_force(images)
    found = find(images)
    assert {tuple(pair) for pair in found.pairs} == expected
    assert 20 < len(expected) < 90
    assert found.blank.sum() == 2


def test_the_frames_of_a_film_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr("research.data.duplicates._BLOCK", 64)
    rng = np.random.default_rng(0)
    film = smooth(rng, 1, 20, 3)[0]
    frames = [noisy(rng, film, rng.uniform(1, 10)) for _ in range(90)]
    images = np.concatenate([frames, smooth(rng, 30, 20, 3)])
    expected = brute_force(images)
    assert {tuple(pair) for pair in find(images).pairs} == expected and len(expected) > 1000


def test_relit_and_reencoded_copies_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    images = smooth(rng, 60, 32, 3)
    stored = io.BytesIO()
    Image.fromarray(images[0]).save(stored, "jpeg", quality=75)
    jpeg = np.asarray(Image.open(stored))
    darker = np.rint(images[1] * 0.8 + 10).astype(np.uint8)
    found = find(np.concatenate([images, [jpeg, darker]]))
    assert {tuple(pair) for pair in found.pairs} == {(0, 60), (1, 61)}


def test_distances_are_those_of_standardised_pixels():
    rng = np.random.default_rng(0)
    images = smooth(rng, 2, 16, 1)
    images[1] = noisy(rng, images[0], 3)
    a, b = ((x - x.mean()) / x.std() for x in images.astype(float))
    np.testing.assert_allclose(find(images).distances, [np.sqrt(((a - b) ** 2).mean())], rtol=1e-4)


def test_exact_groups_are_those_of_a_dictionary():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (200, 2, 3, 1), np.uint8)
    expected = {}
    for i, picture in enumerate(images):
        expected.setdefault(picture.tobytes(), []).append(i)
    groups = exact_groups(find(images).digests)
    several = [group for group in expected.values() if len(group) > 1]
    assert sorted(group.tolist() for group in groups) == sorted(several)


def test_one_colour_is_blank_and_one_other_pixel_is_not():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[0] += np.array([9, 8, 7], np.uint8)
    images[1, 2, 2, 0] = 1
    assert is_blank(images).tolist() == [True, False, True]


def test_nothing_is_found_in_nothing():
    found = find(np.zeros((3, 4, 4, 1), np.uint8))
    assert found.blank.all() and found.pairs.shape == (0, 2)
