import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.data import cache, store
from research.data.arrays import write_arrays
from research.data.source import from_arrays
from research.errors import UserError


def prepare_in_a_process(root, data, more=""):
    """Starts a process that prepares `data` and prints its fingerprint."""
    code = f"""
import json, sys, time
from ml_collections import ConfigDict
from research.data import store
data = ConfigDict(json.loads({data.to_json()!r}))
start = time.perf_counter()
found = store.prepare(data)
print(time.perf_counter() - start, found.fingerprints["data"], "tensorflow_datasets" in sys.modules)
{more}
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def pictures(tmp_path):
    """40 pictures in two classes, written in an order of our choice."""

    def make(name, order):
        for i in order:
            folder = tmp_path / name / ("cat" if i % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path / name

    return make


def test_mean_and_std_are_of_the_training_split_only(data_config):
    data = data_config("digits")
    data.split_seed = 3
    got = store.prepare(data)
    train = got.images[got.splits["train"]].astype(np.float64) / 255
    np.testing.assert_allclose(got.mean, train.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(got.std, train.std((0, 1, 2)), rtol=1e-6)
    assert abs(got.mean - got.images.mean() / 255).max() > 1e-6


def test_the_report_is_json_and_agrees_with_the_store(data_config):
    got = store.prepare(data_config("digits"))
    assert json.loads(json.dumps(got.report)) == got.report
    for split, indices in got.splits.items():
        assert got.report["sizes"][split] == len(indices)
        counts = np.bincount(got.labels[indices], minlength=10)
        assert list(got.report["classes"][split].values()) == counts.tolist()
    assert set(got.fingerprints) == {"data", "train", "validation", "test"}


def test_no_validation_split_if_none_is_asked_for(data_config):
    got = store.prepare(data_config("digits", validation_fraction=0.0))
    assert set(got.splits) == {"train", "test"}


def test_the_records_are_the_pictures_in_the_same_order(data_config, pictures):
    data = data_config("folder", path=str(pictures("a", range(40))))
    got, records = store.prepare(data), store.record_source(data)
    assert len(records) == 40
    for i in range(40):
        np.testing.assert_array_equal(records[i]["image"], got.images[i])
        assert records[i]["label"] == got.labels[i] and records[i]["key"].decode() == got.keys[i]


def test_records_are_written_once_and_only_where_they_are_read(data_config, pictures):
    data = data_config("folder", path=str(pictures("a", range(40))))
    store.prepare(data)
    assert not list(Path(data.cache_dir).rglob("*array_record*"))
    store.record_source(data)
    written = {
        path: path.stat().st_mtime_ns for path in Path(data.cache_dir).rglob("*array_record*")
    }
    assert written
    store.record_source(data)
    assert written == {path: path.stat().st_mtime_ns for path in written}


@pytest.mark.parametrize(
    ("pictures", "labels", "told"),
    [
        (np.zeros((5000, 4, 4, 1), np.int64), 5000, r"toy, train part.* int64 \[4096, 4, 4, 1\]"),
        (np.zeros((5000, 4, 4, 1), np.uint8), 4990, "from example 4,096 on: 904 pictures, 894 lab"),
        (np.zeros((80, 4, 4, 1), np.uint8), 90, "80 pictures, 90 labels"),
        (np.zeros((5000, 4, 4, 1), np.uint8), 4096, "904 pictures, 0 labels"),
    ],
)
def test_a_source_that_does_not_fit_together_is_told_of(tmp_path, pictures, labels, told):
    parts = {"train": (pictures, np.zeros(labels, np.int64)), "test": (pictures[:1], np.zeros(1))}
    with pytest.raises(UserError, match=told):
        write_arrays(tmp_path, from_arrays(("a",), (4, 4, 1), parts), "toy")


def test_records_that_cannot_be_written_are_told_of_with_the_way_out(data_config, pictures):
    data = data_config("folder", path=str(pictures("a", range(40))))
    store.prepare(data)
    (found,) = Path(data.cache_dir).rglob("images.npy")
    (found.parent / "records.lock").mkdir()  # root may write anywhere, but not open a folder
    with pytest.raises(UserError, match=r"cannot write to .*; .*config.data.loader=memory"):
        store.record_source(data)


def test_fingerprints_do_not_hang_on_the_order_of_creation_or_the_place(data_config, pictures):
    order = list(range(40))
    first = store.prepare(data_config("folder", path=str(pictures("a", order))))
    random.Random(0).shuffle(order)
    second = store.prepare(data_config("folder", path=str(pictures("b", order))))
    assert first.fingerprints == second.fingerprints
    assert first.keys.tolist() == second.keys.tolist()


def test_a_changed_picture_changes_what_is_prepared(data_config, pictures):
    path = pictures("a", range(40))
    data = data_config("folder", path=str(path))
    before = store.prepare(data)
    Image.new("L", (16, 16), 3).save(path / "cat" / "1.png")
    after = store.prepare(data)
    assert before.fingerprints["data"] != after.fingerprints["data"]
    assert after.report["found"]["blank"]["listed"][0]["key"] == "cat/1.png"


def test_a_change_that_keeps_the_size_is_noticed(data_config, tmp_path):
    for i in range(6):
        (tmp_path / "p" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "p" / "ab"[i % 2] / f"{i}.npy", np.eye(8) * (i + 1) / 6)
    data = data_config("folder", path=str(tmp_path / "p"))
    before = store.prepare(data).fingerprints["data"]
    np.save(tmp_path / "p" / "a" / "0.npy", np.eye(8)[::-1])
    assert store.prepare(data).fingerprints["data"] != before


def test_copies_across_splits_are_dropped_from_train(data_config, pictures):
    path = pictures("a", range(40))
    for part in ("train", "test"):
        (path / part).mkdir()
    for name in ("cat", "dog"):
        (path / name).rename(path / "train" / name)
        (path / "test" / name).mkdir()
    for name, i in (("cat", 1), ("cat", 3), ("dog", 2)):
        copy = (path / "train" / name / f"{i}.png").read_bytes()
        (path / "test" / name / f"{i}.png").write_bytes(copy)
    data = data_config("folder", path=str(path), validation_fraction=0.0)
    got = store.prepare(data)
    kept = {got.images[i].tobytes() for i in got.splits["train"]}
    assert not kept & {got.images[i].tobytes() for i in got.splits["test"]}
    assert got.report["sizes"] == {"train": 37, "test": 3}
    listed = {(e["key"], e["partner_key"]) for e in got.report["found"]["cross_split"]["listed"]}
    assert listed == {(f"train/{k}", f"test/{k}") for k in ("cat/1.png", "cat/3.png", "dog/2.png")}


def test_the_second_call_only_maps_and_imports_nothing_heavy(data_config, root):
    data = data_config("digits")
    store.prepare(data)
    out, _ = prepare_in_a_process(root, data).communicate()
    seconds, _, imported = out.split()
    assert float(seconds) < 0.3 and imported == "False"
    assert isinstance(store.prepare(data).images, np.memmap)


def test_two_processes_at_once_prepare_the_same(data_config, pictures, root):
    data = data_config("folder", path=str(pictures("a", range(40))))
    both = [prepare_in_a_process(root, data) for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][1] == outputs[1][1] == store.prepare(data).fingerprints["data"]
    left = [path.name for path in cache.root(data.cache_dir).rglob("*.tmp-*")]
    assert left == []


def test_a_killed_build_leaves_nothing_that_counts(tmp_path, root):
    target = tmp_path / "cache" / "thing"
    code = f"""
import pathlib, time
from research.data import cache
def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    time.sleep(60)
cache.built(pathlib.Path({str(target)!r}), build)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "building\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists() and list(target.parent.glob("*.tmp-*"))
    cache.built(target, lambda folder: (folder / "whole").write_text("whole"))
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert not list(target.parent.glob("*.tmp-*"))


def test_who_comes_second_waits_and_builds_nothing(tmp_path, root):
    code = f"""
import pathlib, time
from research.data import cache
def build(folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
cache.built(pathlib.Path({str(tmp_path / "thing")!r}), build)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cache.built(tmp_path / "thing", build)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_a_cache_that_cannot_be_written_is_named(data_config, tmp_path):
    (tmp_path / "file").write_text("")
    data = data_config("digits", cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(
        UserError, match=r"data.cache_dir: cannot write to .*file/cache.*cache_dir=DIR"
    ):
        store.prepare(data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission_is_named(data_config, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    data = data_config("digits", cache_dir=str(tmp_path / "locked" / "cache"))
    with pytest.raises(UserError, match=r"cannot write to .*permission denied"):
        store.prepare(data)


def test_a_damaged_cache_says_what_to_delete(data_config, pictures):
    data = data_config("folder", path=str(pictures("a", range(40))))
    store.prepare(data)
    (images,) = cache.root(data.cache_dir).glob("folder-*/images.npy")
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(UserError, match=f"{images.parent}.*delete"):
        store.prepare(data)


@pytest.mark.skipif(
    not os.path.isdir("/usr/share/datasets/fashion-mnist"), reason="Debian's files are not here"
)
@pytest.mark.slow
def test_the_whole_of_fashion_mnist_within_a_minute(data_config):
    start = time.perf_counter()
    got = store.prepare(data_config("fashion_mnist"))
    assert time.perf_counter() - start < 60
    assert got.report["sizes"] == {"train": 54000, "validation": 6000, "test": 10000}
    assert set(got.report["classes"]["test"].values()) == {1000}
    assert got.report["found"]["duplicate"]["total"] == 0
