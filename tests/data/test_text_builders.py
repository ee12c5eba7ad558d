import io
import json
import sys
import sysconfig
import tarfile

import numpy as np
import pytest

from research.data.text.store import prepare
from research.errors import UserError

PARTS = {
    "reviews": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}


def refuse(data, labelled=True):
    """Returns the lines that a user would see."""
    with pytest.raises(UserError) as caught:
        prepare(data, labelled=labelled)
    return str(caught.value).splitlines()


def check(lines, *expected):
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words), line


@pytest.fixture
def folder(tmp_path):
    """Writes files: folder({'good/1.txt': 'text'}) -> their folder."""

    def make(files):
        for name, text in files.items():
            place = tmp_path / "texts" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "texts"

    return make


@pytest.fixture
def table(tmp_path, data_config):
    """Writes a table and returns its config: table('t.csv', 'text,label\\n...')."""

    def make(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return data_config("table", path=str(path), **options)

    return make


def classes(parts, count=4):
    return {
        f"{part}{c}/{i}.txt": f"{part} text {i} about {c} things"
        for part in parts
        for c in ("dog", "cat")
        for i in range(count)
    }


def test_a_folder_for_each_class(data_config, folder):
    path = folder(classes([""]) | {"cat/notes.pdf": "no text", "cat/.hidden.txt": "no"})
    got = prepare(data_config("text_folder", path=str(path)), labelled=True)
    assert got.class_names == ("cat", "dog") and len(got.texts) == 8
    for i, key in enumerate(got.keys):
        assert got.texts[i] == (path / str(key)).read_text()
        assert got.class_names[got.labels[i]] == str(key).split("/")[0]


def test_a_folder_with_splits_of_its_own(data_config, folder):
    path = folder(classes(["train/", "val/", "test/", "test_night/"]))
    got = prepare(data_config("text_folder", path=str(path)), labelled=True)
    assert {k: len(v) for k, v in got.splits.items()} == dict.fromkeys(
        ("train", "validation", "test", "test_night"), 8
    )
    for split, spelling in (("validation", "val/"), ("test_night", "test_night/")):
        assert all(str(got.keys[i]).startswith(spelling) for i in got.splits[split])


def test_a_tree_of_any_files_without_classes(data_config, folder):
    files = {f"a/{'b/' * (i % 3)}{i}.md": f"note {i} of {i * i}" for i in range(12)}
    path = folder(files | {"top.txt": "at the top", "x.rst": "not this"})
    got = prepare(data_config("text_folder", path=str(path)), labelled=False)
    assert dict(zip(got.keys.tolist(), got.texts, strict=True)) == files | {"top.txt": "at the top"}
    only = data_config("text_folder", path=str(path), suffixes=(".pdf",))
    check(refuse(only, False), ["no texts", ".pdf", "data.suffixes"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"1.txt": "a", "2.txt": "b"}, ["no class folders", "data.name=table"]),
        ({"cat/1.txt": "a", "cat/2.txt": "b"}, ["only one class folder, 'cat'"]),
        ({"test/cat/1.txt": "a", "test/dog/1.txt": "b"}, ["'test'", "none named 'train'"]),
        (classes(["train/"]) | {"test/cats/1.txt": "x"}, ["no class 'cats' in train", "'cat'"]),
        (classes([""]) | {"emu/1.doc": "x"}, ["emu", "no texts", ".doc", ".txt"]),
        (classes([""]) | {"cat/0.txt": b"caf\xe9"}, ["cat/0.txt", "byte 0xE9 at position 3"]),
        (classes([""]) | {"cat/0.txt": b"ab\xc3"}, ["cat/0.txt", "byte 0xC3 at position 2"]),
    ],
)
def test_folders_that_are_wrong(data_config, folder, files, words):
    check(refuse(data_config("text_folder", path=str(folder(files)))), words)


def test_paths_that_lead_nowhere(data_config, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "a.csv").write_text("text\n")
    check(refuse(data_config("text_folder")), ["data.path=DIR"])
    check(refuse(data_config("text_folder", path=str(tmp_path / "text"))), ["did you mean 'texts'"])
    check(refuse(data_config("text_folder", path=str(tmp_path / "a.csv"))), ["data.name=table"])
    check(
        refuse(data_config("table", path=str(tmp_path / "texts"))), ["train.csv", "train.parquet"]
    )
    (tmp_path / "b.xlsx").write_text("text\n")
    check(refuse(data_config("table", path=str(tmp_path / "b.xlsx"))), [".csv, .tsv, .jsonl"])


ROWS = [(f'text {i}, "quoted"\nof {i * i}', "good" if i % 3 else "bad") for i in range(30)]


def in_every_format(tmp_path):
    import csv

    import pyarrow
    import pyarrow.parquet

    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    lines = [json.dumps({"label": label, "text": text}) + "\n" for text, label in ROWS]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    columns = {"text": [r[0] for r in ROWS], "label": [r[1] for r in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    flat = [f"{text}\t{label}" for text, label in ((t.replace("\n", " "), c) for t, c in ROWS)]
    (tmp_path / "t.tsv").write_text("\ufefftext\tlabel\r\n" + "\r\n".join(flat))


def test_every_format_holds_the_same(data_config, tmp_path):
    in_every_format(tmp_path)
    for ending in ("csv", "jsonl", "parquet", "tsv"):
        got = prepare(data_config("table", path=str(tmp_path / f"t.{ending}")), labelled=True)
        flat = (lambda text: text.replace("\n", " ")) if ending == "tsv" else str
        assert list(got.texts) == [flat(text) for text, _ in ROWS], ending
        assert [got.class_names[i] for i in got.labels] == [label for _, label in ROWS]
    assert got.keys[:2].tolist() == ["t/0000002", "t/0000003"]  # the lines of the file


def test_keys_are_the_lines_where_rows_begin(table):
    rows = "".join(f'"text {i}\nsecond line",{"ab"[i % 2]}\n\n' for i in range(10))
    got = prepare(table("t.csv", "text,label\n" + rows), labelled=True)
    assert [int(key[-7:]) for key in got.keys] == [2 + 3 * i for i in range(10)]


def test_whole_numbers_are_classes_by_their_size(table):
    rows = "".join(f"text {i} is {i * i},{(2, 10, 9)[i % 3]}\n" for i in range(15))
    got = prepare(table("t.csv", "text,label\n" + rows), labelled=True)
    assert got.class_names == ("2", "9", "10") and got.labels[:3].tolist() == [0, 2, 1]


def test_a_folder_of_tables(data_config, tmp_path):
    for part, count in (("train", 12), ("test", 4), ("test_far", 4), ("notes", 1)):
        rows = [f"{part} {i} {i * i}\t{'ab'[i % 2]}\n" for i in range(count)]
        (tmp_path / f"{part}.tsv").write_text("text\tlabel\n" + "".join(rows))
    got = prepare(data_config("table", path=str(tmp_path), validation_fraction=0.0), labelled=True)
    assert {k: len(v) for k, v in got.splits.items()} == {"train": 12, "test": 4, "test_far": 4}
    assert got.keys[got.splits["test_far"][0]] == "test_far/0000002"


def test_prompts_and_messages_are_chats(table):
    pairs = [(f"what is {i}?", f"it is {i * i}.") for i in range(12)]
    lines = [json.dumps({"prompt": p, "answer": a, "text": f"not {p}"}) for p, a in pairs]
    got = prepare(table("p.jsonl", "\n".join(lines)), labelled=False)
    roles = ("user", "assistant")
    expected = [
        [{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)] for pair in pairs
    ]
    assert got.chat and [json.loads(text) for text in got.texts] == expected
    said = [{"messages": [{"role": "system", "content": "be e\u0301"}, *chat]} for chat in expected]
    got = prepare(table("m.jsonl", "\n".join(map(json.dumps, said))), labelled=False)
    assert got.chat and json.loads(got.texts[3])[1:] == expected[3]
    assert json.loads(got.texts[3])[0] == {"role": "system", "content": "be \u00e9"}
    plain = prepare(table("q.jsonl", "\n".join(lines), prompt_column=""), labelled=False)
    assert not plain.chat and plain.texts[0] == "not what is 0?"


def test_messages_in_parquet(data_config, tmp_path):
    import pyarrow
    import pyarrow.parquet

    chats = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i * i}"}]
        for i in range(12)
    ]
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "c.parquet")
    got = prepare(data_config("table", path=str(tmp_path / "c.parquet")), labelled=False)
    assert got.chat and [json.loads(text) for text in got.texts] == chats


GOOD = '{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n'
MORE = GOOD + GOOD.replace("o", "0")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", "", [["t.csv", "the file is empty"]]),
        ("t.csv", "text,label\n", [["t.csv", "no rows"]]),
        ("t.csv", "txt,label\na,b\n", [["no column 'text'", "did you mean 'txt'", "txt, label"]]),
        ("t.csv", "a,b\n1,2\n", [["'text'", "there: a, b"], ["'label'", "there: a, b"]]),
        ("t.csv", "text,text\na,b\n", [["two columns", "'text'"]]),
        (
            "t.csv",
            'text,label\n"a\nb",x\nc\nd,y,z\n',
            [["line 4", "1 fields", "header has 2"], ["line 5", "3 fields"]],
        ),
        ("t.csv", 'text,label\na,x\n"b,y\n', [["line 3", "not CSV"]]),
        ("t.tsv", "text\tlabel\na\tx\nb\n", [["line 3", "1 fields"]]),
        ("t.csv", "text,label\na,0.5\nb,1\n", [["line 2", "label 0.5 is a fraction"]]),
        ("t.csv", "text,label\na,1e3\nb,nan\n", [["line 2", "1e3"], ["line 3", "nan"]]),
        ("t.csv", "text,label\na,x\nb,\n", [["line 3", "no label in column 'label'"]]),
        (
            "t.csv",
            b"text,label\na,x\nb,y\nc\xe9,x\nd,y\ne,x\n",
            [["line 4", "0xE9 at position 20"]],
        ),
        ("t.csv", b"t\xe9xt,label\na,x\n", [["line 1", "0xE9 at position 1"]]),
        ("t.jsonl", GOOD + '{"text": \n' + GOOD + "nope\n", [["line 3", "not JSON"], ["line 6"]]),
        (
            "t.jsonl",
            GOOD + f'{{"text": "x", "label": {"1" * 5000}}}\n' + "[" * 100_000 + "\n",
            [["line 3", "cannot be read", "digits"], ["line 4", "cannot be read", "recursion"]],
        ),
        (
            "t.jsonl",
            GOOD.replace("one", "\xe9").replace("two", "\xe9").encode("latin-1"),
            [["line 1", "0xE9 at position 10", "convert"], ["line 2", "0xE9 at position 38"]],
        ),
        ("t.jsonl", GOOD + "[1]\n", [["line 3", "not an object"]]),
        ("t.jsonl", GOOD + '{"label": "a"}\n', [["line 3", "no column 'text'", "there: label"]]),
        (
            "t.jsonl",
            GOOD + '{"text": 7, "label": "a"}\n',
            [["line 3", "'text' holds 7", "no text"]],
        ),
        (
            "t.jsonl",
            GOOD + '{"text": "x", "label": 1.0}\n',
            [["line 3", "label 1.0 is a fraction"]],
        ),
        (
            "t.jsonl",
            MORE.encode() + b'{"text": "\xff", "label": "a"}\n',
            [["line 5", "position 130"]],
        ),
        (
            "t.jsonl",
            MORE + '{"text": "\\ud800", "label": "a"}\n',
            [["t/0000005", "U+D800", "character 0"]],
        ),
        ("t.parquet", "PAR1 not", [["t.parquet", "cannot be read as Parquet"]]),
    ],
)
def test_tables_that_are_wrong(table, name, content, expected):
    check(refuse(table(name, content)), *expected)


def test_many_wrong_lines_are_counted(table):
    lines = refuse(table("t.jsonl", "nope\n" * 25))
    assert len(lines) == 11 and "15 more" in lines[-1]


def test_rows_that_are_not_utf8_can_be_left_out(table):
    rows = b"".join(b"text %d is %d,%s\n" % (i, i * i, b"ab"[i % 2 : i % 2 + 1]) for i in range(12))
    for name, good, bad in (
        ("t.csv", b"\xef\xbb\xbftext,label\n" + rows, b"\xff\xfe,a\n"),
        (
            "t.jsonl",
            b"".join(b'{"text": "t %d", "label": %d}\n' % (i, i % 2) for i in range(12)),
            b"\xff\n",
        ),
    ):
        data = table(name, good + bad)
        data.clean.unreadable = "drop"
        got = prepare(data, labelled=True)
        assert len(got.texts) == 12
        (listed,) = got.report["found"]["unreadable"]["listed"]
        assert f"position {len(good)}" in listed["detail"] and "0xFF" in listed["detail"]


def test_a_float_column_of_parquet(data_config, tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"text": ["a", "b"], "label": [0.0, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "f.parquet")
    lines = refuse(data_config("table", path=str(tmp_path / "f.parquet")))
    check(lines, ["row 1", "0.0 is a fraction"], ["row 2"])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["line 1", "not a list of"]),
        ([{"role": "user", "content": "hi"}], ["'user'", "not 'assistant'"]),
        ([{"from": "human", "value": "hi"}], ["'human'", '"role"']),
        ("hello", ["is not JSON"]),
    ],
)
def test_chats_that_are_wrong(table, messages, words):
    data = table("c.jsonl", json.dumps({"messages": messages}))
    check(refuse(data, labelled=False), words)


def test_nothing_to_read_says_what_there_is(table):
    data = table("c.jsonl", '{"question": "a", "reply": "b"}\n')
    check(refuse(data, False), ["'text'", "'prompt' and 'answer'", "'messages'", "question, reply"])
    (line,) = refuse(table("s.csv", "text,part\na,tset\n", split_column="part"), False)
    assert "line 2" in line and "split 'tset'" in line and "did you mean 'test'" in line
    (line,) = refuse(table("s.csv", "text,part\na,test\n", split_column="part"), False)
    assert "no text is in the split train, only in test" in line


def test_labels_of_the_test_split_alone(data_config, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,good\nb,bad\nc,good\nd,bad\n")
    (tmp_path / "test.csv").write_text("text,label\ne,good\nf,godo\n")
    (line,) = refuse(data_config("table", path=str(tmp_path)))
    assert "label 'godo' is only in test (test/0000003), not in train" in line
    assert "did you mean 'good'" in line


def ratings(part, count=40, grouped=False):
    keys = [f"{i // 4 + 1}_{i % 4 + 1}" if grouped else str(i + 1) for i in range(count)]
    rated = [(-1.5, 2.25, -0.3333333, 0.0, 3)[i % 5] for i in range(count)]
    lines = [
        f"{k}\t{r}\t{part} sentence {k} é or {i * i}  "
        for i, (k, r) in enumerate(zip(keys, rated, strict=True))
    ]
    return "\r\n".join(lines).encode()


@pytest.fixture
def archive(tmp_path):
    """The archive in an archive, as the package ships it."""

    def packed(files):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return out.getvalue()

    inner = {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": ratings(
            part, 40, part in ("products", "editorials")
        )
        for part, name in PARTS.items()
    }
    outer = {"v/additional_resources/hutto_ICWSM_2014.tar.gz": packed(inner), "v/setup.py": b""}
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(packed(outer))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "hutto_ICWSM_2014.tar.gz").write_bytes(packed(inner))
    for name, content in inner.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    return tmp_path


def test_rated_sentences_wherever_they_lie(data_config, archive):
    prints = set()
    for place in ("vaderSentiment-3.3.2.tar.gz", "in", "in/hutto_ICWSM_2014.tar.gz", "out", ""):
        data = data_config("rated_sentences", path=str(archive / place))
        got = prepare(data, labelled=True)
        prints.add(got.fingerprints["data"])
    assert len(prints) == 1 and len(got.texts) == 32  # 8 of 40 are rated 0
    assert got.class_names == ("negative", "positive")
    assert dict(zip(got.keys.tolist(), got.labels.tolist(), strict=True)) == {
        f"reviews/{i + 1}": int(i % 5 in (1, 4)) for i in range(40) if i % 5 != 3
    }
    assert got.texts[1] == "reviews sentence 2 é or 1"
    every = prepare(
        data_config("rated_sentences", path=str(archive), drop_zero=False), labelled=True
    )
    assert len(every.texts) == 40 and every.labels.sum() == got.labels.sum()
    assert len(prepare(data, labelled=False).texts) == 40


def test_sentences_of_one_review_stay_together(data_config, archive):
    got = prepare(data_config("rated_sentences", path=str(archive), part="all"), labelled=True)
    assert len(got.texts) == 128
    where = {}
    for split, indices in got.splits.items():
        for key in got.keys[indices].tolist():
            part, _, number = key.partition("/")
            where.setdefault((part, number.split("_")[0]), set()).add(split)
    grouped = [splits for (part, _), splits in where.items() if part in ("products", "editorials")]
    assert len(grouped) == 20 and all(len(splits) == 1 for splits in grouped)


def test_further_parts_are_trained_on_only(data_config, archive):
    plain = prepare(data_config("rated_sentences", path=str(archive)), labelled=True)
    more = prepare(
        data_config("rated_sentences", path=str(archive), extra=("products",)), labelled=True
    )
    for split in ("validation", "test"):
        assert more.fingerprints[split] == plain.fingerprints[split]
    assert len(more.splits["train"]) == len(plain.splits["train"]) + 32


def test_how_strongly_a_sentence_was_rated_is_how_certain_its_label_is(data_config, archive):
    plain, graded = (
        prepare(data_config("rated_sentences", path=str(archive), certainty=s), labelled=True)
        for s in (0.0, 2.0)
    )
    assert (plain.certainty == 1).all()
    assert plain.fingerprints["data"] != graded.fingerprints["data"]
    rated = [
        (-1.5, 2.25, -0.3333333, 0.0, 3)[int(key.split("/")[1]) % 5 - 1] for key in graded.keys
    ]
    expected = 1 / (1 + np.exp(-2 * np.abs(rated)))
    np.testing.assert_allclose(graded.certainty, expected, rtol=1e-6)  # float32
    np.testing.assert_array_equal(graded.labels, np.array(rated) > 0)
    assert "config.data.certainty" in "".join(
        refuse(data_config("rated_sentences", path=str(archive), certainty=-1.0))
    )


def test_rated_sentences_that_are_not_there(data_config, archive, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    pip = "pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 -d data/"
    for path in (
        "",
        str(tmp_path / "no.tar.gz"),
        str(tmp_path / "none"),
        str(tmp_path / "x.tar.gz"),
    ):
        check(refuse(data_config("rated_sentences", path=path)), [pip])
    data = data_config("rated_sentences", path=str(archive), part="films")
    check(
        refuse(data), ["config.data.part", "'films'", "reviews, products, tweets, editorials, all"]
    )
    data = data_config("rated_sentences", path=str(archive), extra=("reviews",))
    check(refuse(data), ["config.data.extra", "already"])


def test_a_tree_of_python_source(data_config, folder):
    files = {f"src/pack{i}/{name}.py": f"x = {i}  # {name}\n" for i in range(9) for name in "abc"}
    more = {
        "src/alone.py": "y = 1\n",
        "src/latin.py": "# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"),
        "src/broken.py": b"# \xff\n",
        "src/pack1/tests/t.py": "assert True\n",
        "src/pack1/__pycache__/c.py": "z\n",
        "src/site-packages/other.py": "z\n",
    }
    path = folder(files | more)
    got = prepare(data_config("python_source", path=str(path)), labelled=False)
    assert set(got.keys) == {*files, "src/alone.py", "src/latin.py"}
    assert "name = 'é'" in got.texts[got.keys.tolist().index("src/latin.py")]
    skipped = got.report["found"]["skipped"]
    assert skipped["total"] == 1 and "broken.py" in skipped["listed"][0]["detail"]
    where = {}
    for split, indices in got.splits.items():
        for key in got.keys[indices].tolist():
            where.setdefault(key.split("/")[1], set()).add(split)
    assert all(len(splits) == 1 for splits in where.values()) and len(got.splits) == 3
    tests = prepare(data_config("python_source", path=str(path), tests=True), labelled=False)
    assert "src/pack1/tests/t.py" in tests.keys
    check(refuse(data_config("python_source", path=str(path))), ["no classes", "config.task.name"])


def test_the_standard_library_is_found(data_config):
    from research.data.builders import python_source

    source = python_source.locate_text(data_config("python_source"))
    opened = source.open(False)
    assert source.place == sysconfig.get_paths()["stdlib"] and opened.total > 300
    keys = {item.key: item for item in opened.read()}
    assert keys["asyncio/tasks.py"].group == "asyncio" and keys["argparse.py"].group == "argparse"
    assert not any("site-packages" in key or "/test/" in key for key in keys)
    assert source.fingerprint == python_source.locate_text(data_config("python_source")).fingerprint


@pytest.fixture
def copy(tmp_path):
    """Builds a copy in TFDS' form: copy(features, examples of train, of test) -> the folder of copies."""
    import tensorflow_datasets as tfds

    def make(features, train, test=(), keys=None):
        with tfds.core.registered.skip_registration():

            class Copy(tfds.core.GeneratorBasedBuilder):
                name, VERSION, code_path = "letters", tfds.core.Version("1.0.0"), None

                def _info(self):
                    return tfds.core.DatasetInfo(
                        builder=self,
                        features=tfds.features.FeaturesDict(features),
                        supervised_keys=keys,
                        disable_shuffling=True,
                    )

                def _split_generators(self, dl_manager):
                    parts = {"train": train, "test": test}
                    return {k: enumerate(v) for k, v in parts.items() if v}

                def _generate_examples(self):
                    raise AssertionError("there are generators already")

        Copy(data_dir=str(tmp_path / "copies"), file_format="array_record").download_and_prepare()
        return str(tmp_path / "copies")

    return make


def test_a_catalog_copy_is_read_without_tensorflow(data_config, copy):
    import tensorflow_datasets as tfds

    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["neg", "pos"]),
    }
    rows = [{"text": f"text {i} é", "label": i % 2} for i in range(20)]
    path = copy(features, rows[:12], rows[12:], ("text", "label"))
    data = data_config("tfds:letters", path=path)
    got = prepare(data, labelled=True)
    assert list(got.texts) == [row["text"] for row in rows] and got.class_names == ("neg", "pos")
    assert got.labels.tolist() == [0, 1] * 10 and "tensorflow" not in sys.modules
    np.testing.assert_array_equal(got.splits["test"], np.arange(12, 20))
    assert prepare(data, labelled=False).class_names == ()
    data.label_feature = "lable"
    check(refuse(data), ["no feature 'lable'", "did you mean 'label'"])


def test_a_catalog_copy_of_several_texts(data_config, copy):
    import tensorflow_datasets as tfds

    features = {"title": tfds.features.Text(), "body": tfds.features.Text()}
    path = copy(features, [{"title": f"t{i}", "body": f"body {i}"} for i in range(12)])
    check(refuse(data_config("tfds:letters", path=path), False), ["text_feature", "title", "body"])
    got = prepare(data_config("tfds:letters", path=path, text_feature="body"), labelled=False)
    assert got.texts[3] == "body 3"
