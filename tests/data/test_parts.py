"""What a source may bring beside pictures and labels: options, groups and tests of its own; and given mean and std."""

import json

import numpy as np
import pytest
from PIL import Image

from research.config import defaults, resolve
from research.data import store
from research.data.batches import inputs, make_batches
from research.data.builders import digits
from research.data.source import in_order, is_part
from research.errors import UserError


def write_pictures(folder, count, first=0):
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_names_of_parts():
    assert all(map(is_part, ("train", "validation", "test", "test_vendor", "test_2")))
    assert not any(map(is_part, ("test_", "tests", "train_2", "test-a", "test_a/b", "")))
    names = ["test_b", "test", "train", "test_a", "validation"]
    assert in_order(names) == ["train", "validation", "test", "test_a", "test_b"]


def test_a_folder_may_bring_further_tests(data_config, tmp_path):
    for number, (part, count) in enumerate({"train": 10, "test_night": 3, "test_day": 2}.items()):
        for k, name in enumerate(("cat", "dog")):
            write_pictures(tmp_path / "p" / part / name, count, 100 * number + 50 * k)
    got = store.prepare(data_config("folder", path=str(tmp_path / "p")))
    sizes = {"train": 14, "validation": 2, "test": 4, "test_day": 4, "test_night": 6}
    assert {split: len(indices) for split, indices in got.splits.items()} == sizes
    assert set(got.fingerprints) == {"data", *sizes}
    for name in ("test_day", "test_night"):
        assert all(got.keys[i].startswith(f"{name}/") for i in got.splits[name])
        np.testing.assert_array_equal(
            got.labels[got.splits[name]], np.repeat([0, 1], sizes[name] // 2)
        )
    record = store.record_source(data_config("folder", path=str(tmp_path / "p")))
    i = got.splits["test_night"][0]
    np.testing.assert_array_equal(record[i]["image"], got.images[i])


def test_a_folder_of_classes_called_test_something_has_classes(data_config, tmp_path):
    for k, name in enumerate(("test_strips", "test_tubes")):
        write_pictures(tmp_path / "p" / name, 5, 50 * k)
    got = store.prepare(data_config("folder", path=str(tmp_path / "p")))
    assert got.class_names == ("test_strips", "test_tubes")


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_table_may_name_groups_and_further_tests(data_config, tmp_path, ending):
    write_pictures(tmp_path / "x", 44)
    rows = [
        {"path": f"x/{i}.png", "label": "ab"[i % 2], "split": "", "group": f"g{i // 4}"}
        for i in range(40)
    ]
    rows += [
        {"path": f"x/{i}.png", "label": "ab"[i % 2], "split": "test_new"} for i in range(40, 44)
    ]
    table = tmp_path / f"table{ending}"
    if ending == ".csv":
        lines = [",".join(r.get(k, "") for k in ("path", "label", "split", "group")) for r in rows]
        table.write_text("path,label,split,group\n" + "\n".join(lines))
    else:
        table.write_text("\n".join(map(json.dumps, rows)))
    got = store.prepare(data_config("folder", path=str(table)))
    assert len(got.splits["test_new"]) == 4
    numbers = {
        split: {int(got.keys[i][2:-4]) // 4 for i in got.splits[split]} for split in got.splits
    }
    assert not numbers["train"] & numbers["test"] and not numbers["train"] & numbers["validation"]
    assert not numbers["validation"] & numbers["test"]
    assert {split: len(i) for split, i in got.splits.items()} == {
        "train": 28,
        "validation": 4,
        "test": 8,
        "test_new": 4,
    }


def test_a_group_in_two_of_the_sources_own_splits_is_an_error(data_config, tmp_path):
    write_pictures(tmp_path / "x", 12)
    rows = [f"x/{i}.png,{'ab'[i % 2]},{'test' if i > 8 else 'train'},{i // 4}" for i in range(12)]
    (tmp_path / "t.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    with pytest.raises(
        UserError, match="group '2' lies in train .*x/8.png.* and in test .*x/10.png"
    ):
        store.prepare(data_config("folder", path=str(tmp_path / "t.csv"), validation_fraction=0.0))


@pytest.fixture
def with_option(monkeypatch):
    """Gives the digits an option, `invert`."""
    plain = digits.locate

    def locate(data, *, invert: bool = False):
        source = plain(data)

        def opened():
            found = source.open()

            def read(part):
                for block in found.read(part):
                    yield block._replace(pictures=255 - block.pictures) if invert else block

            return found._replace(read=read)

        return source._replace(open=opened)

    monkeypatch.setattr(digits, "locate", locate)


def test_a_builders_options_are_those_of_the_section(with_option):
    config, found = resolve(defaults(), [("data.invert", "true")])
    assert found == [] and config.data.invert is True
    assert resolve(defaults())[0].data.invert is False
    (line,) = resolve(defaults(), [("data.invrt", "true")])[1]
    assert "config.data.invrt" in line and "did you mean 'data.invert'" in line
    (line,) = resolve(defaults(), [("data.invert", "3")])[1]
    assert "must be of type bool" in line


def test_another_source_drops_the_options_of_the_first(with_option):
    config = defaults()
    config.data.invert = True
    other, found = resolve(config, [("data.name", "mnist_5k")])
    assert found == [] and "invert" not in other.data
    (line,) = resolve(config, [("data.name", "tfds:mnist"), ("data.invert", "true")])[1]
    assert "config.data.invert: unknown key" in line
    (line,) = resolve(config, [("data.name", "digit")])[1]
    assert "did you mean 'digits'" in line and "or tfds:NAME" in line


def test_an_option_is_passed_and_prepares_other_data(with_option, data_config):
    plain = store.prepare(data_config("digits"))
    inverted = store.prepare(data_config("digits", invert=True))
    np.testing.assert_array_equal(inverted.images, 255 - np.asarray(plain.images))
    # The default, said or not, is the same folder.
    assert (
        store.prepare(data_config("digits", invert=False)).images.filename == plain.images.filename
    )


def test_given_mean_and_std_normalise_training_evaluation_and_inputs(data_config):
    data = data_config("digits", mean=(0.5,), std=(0.25,))
    got = store.prepare(data)
    train, evaluate = make_batches(got, data, seed=0, batch_size=16, eval_batch_size=16)
    for batch in (train(0, slice(None)), evaluate("test", 0, slice(None))):
        expected = (got.images[batch["id"]] / 255.0 - 0.5) / 0.25
        np.testing.assert_allclose(batch["image"], expected, atol=1e-6)  # float32, values to 2
    mine = np.asarray(got.images[:3])
    batch = inputs(mine, ["a", "b", "c"], got, 4).batch(0, slice(None))
    np.testing.assert_allclose(batch["image"][:3], (mine / 255.0 - 0.5) / 0.25, atol=1e-6)
    assert got.report["mean"] == [0.5] and got.report["std"] == [0.25]
    own = store.prepare(data_config("digits"))
    assert own.report["normalised_by"] == dict.fromkeys(("mean", "std"), "the training split")
    assert got.report["normalised_by"] == {"mean": "data.mean", "std": "data.std"}
    assert own.mean[0] != 0.5 and own.fingerprints == got.fingerprints


def test_only_one_of_them_may_be_given(data_config):
    own, got = (
        store.prepare(data_config("digits")),
        store.prepare(data_config("digits", std=(1.0,))),
    )
    assert got.std.tolist() == [1.0] and got.mean == own.mean


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.std=0", "numbers above 0"),
        ("data.std=(0.2, -1.0, 0.2)", "numbers above 0"),
        ("data.mean=('a',)", "numbers, one a channel"),
        ("data.mean=half", "must be of type tuple"),
    ],
)
def test_means_that_are_none(override, says):
    (line,) = resolve(defaults(), [override.split("=", 1)])[1]
    assert says in line


def test_a_wrong_number_of_them_is_one_line(data_config):
    with pytest.raises(UserError) as caught:
        store.prepare(data_config("digits", mean=(0.485, 0.456, 0.406)))
    (line,) = str(caught.value).splitlines()
    assert "config.data.mean" in line and "1 channel" in line and "(0.485, 0.456, 0.406)" in line
