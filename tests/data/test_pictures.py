import io

import numpy as np
import pytest
from PIL import Image

from research.data.pictures import fit, is_colour, picture
from research.errors import UserError


@pytest.fixture
def save(tmp_path):
    """Writes a PIL image or an array and returns its path."""

    def write(what, name="a.png", **options):
        path = tmp_path / name
        np.save(path, what) if name.endswith(".npy") else what.save(path, **options)
        return path

    return write


def test_a_picture_of_the_right_size_comes_back_bit_by_bit(save):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(picture(save(Image.fromarray(pixels)), 5, 7, 3), pixels)


def test_colour_becomes_grey_by_the_luma_of_bt601(save):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 40, 200]]], np.uint8)
    grey = picture(save(Image.fromarray(colours)), 1, 4, 1)
    np.testing.assert_allclose(grey[..., 0], colours @ [0.299, 0.587, 0.114], atol=1)


def test_transparency_is_laid_on_white(save):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 100, 51]]], np.uint8)
    got = picture(save(Image.fromarray(pixels)), 1, 3, 3)
    # alpha * colour + (1 - alpha) * 255
    np.testing.assert_allclose(got[0], [[255, 255, 255], [200, 0, 0], [244, 204, 224]], atol=1)
    grey = save(Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8)), "grey.png")
    np.testing.assert_array_equal(picture(grey, 1, 2, 1)[0, :, 0], [255, 0])


def test_the_cameras_rotation_mark_is_obeyed(save):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise, so that left comes to lie on top
    got = picture(save(Image.fromarray(pixels), "a.jpg", exif=exif, quality=100), 8, 4, 1)
    assert got[:4].min() > 250 and got[4:].max() < 5


def test_a_flat_picture_stays_flat_when_resized(save):
    path = save(Image.new("L", (31, 17), 77))
    assert (picture(path, 8, 9, 1) == 77).all()
    assert picture(path, 8, 9, 3).shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
    ],
)
def test_numpy_files(save, array, expected):
    np.testing.assert_array_equal(picture(save(array, "a.npy"), 1, 3, 1).ravel(), expected)


def test_sixteen_bit_pngs_are_scaled_not_clipped(save):
    path = save(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)))
    np.testing.assert_array_equal(picture(path, 1, 3, 1).ravel(), [0, 100, 255])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([[0.0, np.nan]]), "nan"),
        (np.array([[0.0, np.inf]]), "nan"),
        (np.zeros((1, 2, 3, 4, 5)), "shape"),
        (np.zeros((4, 4, 2)), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.array([[0.0, 255.0]]), "unreadable"),
        (np.array([[-1, 2]]), "unreadable"),
        (np.array([["a", "b"]]), "unreadable"),
    ],
)
def test_bad_numpy_files_are_named(save, array, kind):
    path = save(array, "a.npy")
    with pytest.raises(UserError, match=str(path)) as caught:
        picture(path, 2, 2, 1)
    assert caught.value.kind == kind


def test_what_is_no_picture_is_named(tmp_path):
    text, cut, array = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "text.npy"
    text.write_text("hello")
    array.write_text("hello")
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(whole, "png")
    cut.write_bytes(whole.getvalue()[:900])
    for path in (text, cut, array, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=str(path)) as caught:
            picture(path, 8, 8, 1)
        assert caught.value.kind == "unreadable"
        assert "\n" not in str(caught.value)


def test_colour_is_known_from_the_header(save):
    assert is_colour(save(Image.new("RGB", (2, 2))))
    assert not is_colour(save(Image.new("LA", (2, 2)), "grey.png"))
    assert is_colour(save(np.zeros((2, 2, 3), np.uint8), "a.npy"))


def test_fit_changes_channels_both_ways():
    grey = np.full((3, 3, 1), 9, np.uint8)
    np.testing.assert_array_equal(fit(grey, 3, 3, 3), np.full((3, 3, 3), 9))
    np.testing.assert_array_equal(fit(fit(grey, 3, 3, 3), 3, 3, 1), grey)
