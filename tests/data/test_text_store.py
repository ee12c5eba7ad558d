import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from research.config import resolve
from research.data.text import texts as texts_module
from research.data.text.store import prepare
from research.errors import UserError


def write(path, count=40, labels=("bad", "good")):
    lines = [
        {
            "text": f"sentence number {i} speaks of {i * 7919} things",
            "label": labels[i % len(labels)],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [line["text"] for line in lines]


@pytest.fixture
def table(data_config, tmp_path):
    """A table of 40 texts in two classes: its config and its texts."""

    def make(**options):
        path = tmp_path / "t.jsonl"
        return data_config("table", path=str(path), **options), write(path)

    return make


def test_texts_are_mapped_as_they_were_written(tmp_path):
    given = ["", "plain", "日本語", "a\nb\t\U0001f600", ""]
    texts_module.write(tmp_path, given)
    got = texts_module.load(tmp_path)
    assert list(got) == given and [got[i] for i in range(-5, 0)] == given and got[1:3] == given[1:3]
    assert [got.bytes(i) for i in range(5)] == [len(text.encode()) for text in given]
    assert got.bytes(-2) == 9 - 1
    with pytest.raises(IndexError):
        got[5]
    texts_module.write(tmp_path, ["", ""])
    assert list(texts_module.load(tmp_path)) == ["", ""]


def test_what_is_prepared(table):
    data, given = table()
    got = prepare(data, labelled=True)
    assert list(got.texts) == given and not got.chat
    assert got.class_names == ("bad", "good") and got.labels.tolist() == [0, 1] * 20
    assert got.labels.dtype == np.int32 and got.keys[0] == "t/0000001"
    assert {k: len(v) for k, v in got.splits.items()} == {"train": 29, "validation": 3, "test": 8}
    together = np.concatenate(list(got.splits.values()))
    assert sorted(together.tolist()) == list(range(40))
    for split, indices in got.splits.items():
        assert (np.diff(indices) > 0).all() and indices.dtype == np.int64
        counts = np.bincount(got.labels[indices], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1, "stratified"
        assert list(got.report["classes"][split].values()) == counts.tolist()
        lengths = sorted(len(given[i]) for i in indices)
        said = got.report["characters"][split]
        assert (said["min"], said["max"], said["total"]) == (lengths[0], lengths[-1], sum(lengths))
        assert said["median"] == lengths[(len(lengths) - 1) // 2]
    assert json.loads(json.dumps(got.report)) == got.report
    assert set(got.fingerprints) == {"data", "train", "validation", "test"}
    assert got.folder.is_dir()


def test_without_labels(table):
    data, given = table()
    got = prepare(data, labelled=False)
    assert got.class_names == () and not got.labels.any() and list(got.texts) == given
    assert {k: len(v) for k, v in got.splits.items()} == {"train": 29, "validation": 3, "test": 8}
    assert got.report["classes"] == {}
    assert all("label" not in e for kind in got.report["found"].values() for e in kind["listed"])


def test_splits_hang_on_the_texts_and_the_seed_alone(data_config, tmp_path):
    def test_of(order, seed=0):
        rows = [f"text {i} of {i * i},{'ab'[i % 2]}" for i in order]
        (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
        got = prepare(
            data_config("table", path=str(tmp_path / "t.csv"), split_seed=seed), labelled=True
        )
        return {got.texts[int(i)] for i in got.splits["test"]}

    first = test_of(range(50))
    assert test_of(reversed(range(50))) == first
    assert test_of(range(50), seed=1) != first

    # By hand: the ticket of a text is a hash of the seed and its digest; in each class the lowest tickets are taken.
    def ticket(text):
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return hashlib.blake2b(b"test 0" + digest, digest_size=16).digest()

    for c in (0, 1):
        ranked = sorted((f"text {i} of {i * i}" for i in range(c, 50, 2)), key=ticket)
        assert {t for t in first if int(t.split()[1]) % 2 == c} == set(ranked[:5])


def test_groups_are_not_parted_and_own_splits_are_kept(data_config, tmp_path):
    rows = [
        f"{i},text {i} of {i * i},{'ab'[i % 2]},g{i // 4},{i % 5 and 'train'}" for i in range(40)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["id,body,kind,who,part", *rows]))
    columns = dict(text_column="body", label_column="kind", group_column="who")
    data = data_config("table", path=str(tmp_path / "t.csv"), **columns)
    got = prepare(data, labelled=True)
    of = {i: split for split, indices in got.splits.items() for i in indices.tolist()}
    assert set(of.values()) == {"train", "validation", "test"}
    assert all(len({of[i] for i in range(g, g + 4)}) == 1 for g in range(0, 40, 4))
    rows = [
        f"text {i} of {i * i},{'ab'[i % 2]},{['train', 'val', 'test', 'test_far'][i % 4]}"
        for i in range(40)
    ]
    (tmp_path / "s.csv").write_text("\n".join(["text,label,split", *rows]))
    data = data_config("table", path=str(tmp_path / "s.csv"), split_column="split")
    with pytest.raises(UserError, match="label 'b' is only in validation"):
        prepare(data, labelled=True)
    got = prepare(data, labelled=False)
    assert {k: v.tolist() for k, v in got.splits.items()} == {
        name: list(range(i, 40, 4))
        for i, name in enumerate(["train", "validation", "test", "test_far"])
    }


def test_the_second_call_only_maps_and_imports_nothing_heavy(table, root):
    data, _ = table()
    prepare(data, labelled=True)
    code = f"""
import json, sys, time
from ml_collections import ConfigDict
from research.data.text.store import prepare
data = ConfigDict(json.loads({data.to_json()!r}))
start = time.perf_counter()
got = prepare(data, labelled=True)
heavy = [m for m in ("datasketch", "pyarrow", "tensorflow_datasets", "jax") if m in sys.modules]
print(time.perf_counter() - start, heavy, got.fingerprints["data"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, heavy, mark = done.stdout.rsplit(maxsplit=2)
    assert float(seconds) < 0.3 and heavy == "[]"
    assert mark == prepare(data, labelled=True).fingerprints["data"]


def test_a_changed_text_is_noticed(table):
    data, _ = table()
    before = prepare(data, labelled=True)
    with open(data.path, "a") as file:
        file.write('{"text": "one more", "label": "bad"}\n')
    after = prepare(data, labelled=True)
    assert len(after.texts) == 41 and before.fingerprints["data"] != after.fingerprints["data"]
    assert before.folder != after.folder


def test_a_damaged_cache_says_what_to_delete(table):
    data, _ = table()
    folder = prepare(data, labelled=True).folder.parent
    file = folder / "texts.bin"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{folder}.*damaged.*delete"):
        prepare(data, labelled=True)


def test_a_builder_of_the_other_kind_is_one_line(data_config):
    from research.data import store

    with pytest.raises(UserError) as caught:
        prepare(data_config("digits"), labelled=True)
    (line,) = str(caught.value).splitlines()
    assert "digits gives pictures" in line and "text_folder, tfds:NAME" in line
    assert "config.task.name" in line and "mnist" not in line
    with pytest.raises(UserError) as caught:
        store.prepare(data_config("python_source"))
    (line,) = str(caught.value).splitlines()
    assert "python_source gives texts" in line and "digits, " in line and "table" not in line


def test_options_of_a_builder_of_texts_are_keys_of_the_section():
    from research.config import defaults

    config, found = resolve(defaults(), [("data.name", "table"), ("data.text_column", "body")])
    assert found == [] and config.data.text_column == "body" and config.data.text.max_length == 128
    (line,) = resolve(defaults(), [("data.name", "table"), ("data.text_colum", "x")])[1]
    assert "did you mean 'data.text_column'" in line
    # Of a builder of both kinds, the options of both.
    both = resolve(defaults(), [("data.name", "tfds:imdb_reviews"), ("data.text_feature", "text")])
    assert both[1] == []


@pytest.mark.parametrize(
    ("count", "labels", "words"),
    [
        (20, ("good",), ["only one class, 'good'"]),
        (3, ("bad", "good"), ["class 'good' has one text", "test and validation"]),
    ],
)
def test_too_little_to_classify(data_config, tmp_path, count, labels, words):
    write(tmp_path / "t.jsonl", count, labels)
    with pytest.raises(UserError) as caught:
        prepare(data_config("table", path=str(tmp_path / "t.jsonl")), labelled=True)
    (line,) = str(caught.value).splitlines()
    assert all(word in line for word in words), line


def test_too_little_for_anything(data_config, tmp_path):
    write(tmp_path / "t.jsonl", 1)
    data = data_config("table", path=str(tmp_path / "t.jsonl"))
    with pytest.raises(UserError, match="there is one text, which can't be shared with test and"):
        prepare(data, labelled=False)
    (tmp_path / "t.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(UserError, match="no text to train on"):
        prepare(data, labelled=False)
    rows = "".join(json.dumps({"text": f"text {i}", "who": "me"}) + "\n" for i in range(9))
    (tmp_path / "t.jsonl").write_text(rows)
    data = data_config("table", path=str(tmp_path / "t.jsonl"), group_column="who")
    with pytest.raises(UserError, match="all are of one group, 'me', which can't be shared"):
        prepare(data, labelled=False)


def test_conversations_with_a_blank_answer_are_blank(data_config, tmp_path):
    rows = [{"prompt": f"question {i}", "answer": f"answer {i}"} for i in range(40)]
    rows[3]["answer"], rows[7]["answer"], rows[9]["prompt"] = "", " \n", ""
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(data_config(name="table", path=str(path)), labelled=False)
    found = store.report["found"]["blank"]
    assert [one["key"] for one in found["listed"]] == ["chat/0000004", "chat/0000008"]
    assert sum(len(some) for some in store.splits.values()) == 38
