"""The page as a browser sees it: parsed, nothing from outside, nothing that runs, every part there."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from research.engine import plots
from research.engine.facts import tables
from research.engine.page import STYLE, table
from research.engine.report import write_report
from research.task import Section

VOID = {"meta", "img", "br"}
EVIL = "<script>alert('x')</script> & \"y\""


class Page(html.parser.HTMLParser):
    """Reads a page strictly: every tag closed in order; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def run(tmp_path):
    """A run directory whose every name tries to break out of the page."""
    lines = [
        {"step": s, "split": split, "loss": 1 / s, EVIL: float(s)}
        for s in (1, 2, 3)
        for split in ("train", "validation")
    ]
    lines.append({"step": 3, "split": "test", "loss": 0.5, "accuracy": 0.875})
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(content + '{"step": 4, "split": "tr')
    summary = {"test/accuracy": 0.875, "test/accuracy_low": 0.8125, "test/accuracy_high": 0.9375}
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "steps": 3, "note": EVIL}))
    config = {"checkpoint": {"best": "validation/accuracy"}} | {
        part: {"name": EVIL} for part in ("task", "model", "data")
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "run.json").write_text(json.dumps({"command": [EVIL], "start": EVIL, "exit": 75}))
    (tmp_path / "parameters.txt").write_text(EVIL)
    return tmp_path


def sections():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return [
        Section(EVIL, "text", EVIL),
        Section("Table", "table", ((EVIL, "n"), [(EVIL, 3), ("b", 0.25)])),
        Section("Matrix", "matrix", ([EVIL, "b"], np.array([[31, 17], [5, 47]]))),
        Section("Images", "images", [(grey, EVIL), (np.zeros((300, 600, 3), np.uint8), "large")]),
        Section("Curve", "curve", {"xlabel": EVIL, "ylabel": "y", "series": {EVIL: ([0], [1.0])}}),
        Section("Data", "facts", {EVIL: np.float32(0.5), "list": [1, 2], "of": {EVIL: {EVIL: 3}}}),
    ]


def test_nothing_runs_and_nothing_comes_from_outside(run):
    text = write_report(run, sections()).read_text()
    page = Page(text)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith("data:image/png;base64,")
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = (a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    # The page still shows each of the names: title, text, both tables, captions, labels, facts.
    assert page.text.count("<script>alert('x')</script>") > 10


def test_the_order_of_the_page(run):
    page = Page(write_report(run, sections()).read_text())
    words = [
        "0.8750", "0.8125 to 0.9375", "Curves", "Final figures", "Table", "Matrix", "Images",
        "Curve", "Data", "Parameters", "Config", "Environment",
    ]  # fmt: skip
    places = [page.text.index(words[0])]
    for word in words[1:]:
        places.append(page.text.index(word, places[-1] + 1))
    assert "ended with exit code 75" in page.text
    assert "viewport" in {a.get("name") for a in page.all("meta")}


def test_a_nested_report_is_shown_as_tables():
    content = {
        "name": "mine",
        "classes": {"train": {"cat": 3, "dog": 4}, "test": {"dog": 1}},
        "found": {
            "blank": {"total": 0, "listed": []},
            "duplicate": {"total": 60, "listed": [{"key": i, "split": "train"} for i in range(60)]},
        },
    }
    shown = {table.title: table for table in tables(content)}
    assert list(shown) == ["", "classes", "found", "found, duplicate, listed (the first 50 of 60)"]
    assert shown[""].rows == [("name", "mine")]
    assert shown["classes"].header == ("", "cat", "dog")
    assert shown["classes"].rows == [("train", 3, 4), ("test", "", 1)]
    assert shown["found"].rows == [("blank", 0), ("duplicate", 60)]
    listed = shown["found, duplicate, listed (the first 50 of 60)"]
    assert listed.header == ["key", "split"] and listed.rows[49] == [49, "train"]


def test_curves_hold_every_split(run):
    text = write_report(run).read_text()
    figures = re.findall(r'<figure class="plot">.*?</figure>', text, re.DOTALL)
    assert len(figures) == 2  # the accuracy was only ever tested: no curve
    loss = Page(figures[0])
    assert "test" in loss.text and "validation" in loss.text and "step" in loss.text
    assert len([a for a in loss.all("path") if "line" in a["class"].split()]) == 2
    assert len([a for a in loss.all("path") if "level" in a["class"].split()]) == 1


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff not json\n"])
def test_missing_or_empty_files_still_give_a_page(tmp_path, content):
    if content is not None:
        for name in ("metrics.jsonl", "summary.json", "config.json", "run.json", "parameters.txt"):
            (tmp_path / name).write_bytes(content)
    page = Page(write_report(tmp_path).read_text())
    assert tmp_path.name in page.text and "No figures yet" in page.text


def test_values_that_are_not_finite(tmp_path):
    lines = [
        '{"step": 1, "split": "train", "loss": NaN}',
        '{"step": 2, "split": "train", "loss": Infinity}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = Page(write_report(tmp_path).read_text())
    assert "nothing to draw" in page.text and "not finite" in page.text


def test_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match="'film' is not one of"):
        write_report(tmp_path, [Section("x", "film", None)])


def test_pictures_survive(run):
    import base64
    import io

    page = Page(write_report(run, sections()).read_text())
    small, large = (
        Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2])))
        for a in page.all("img")
    )
    np.testing.assert_array_equal(np.asarray(small), np.arange(64).reshape(8, 8))
    assert max(large.size) <= 256
    assert [a.get("class") for a in page.all("img")] == ["pixels", None]


def test_matrix_of_few_and_of_many_classes():
    matrix = np.array([[31, 17], [0, 47]])
    few = Page(plots.matrix_plot(["a", "b"], matrix))
    assert {"31", "17", "47"} <= set(few.text.split())
    shades = [float(a["fill-opacity"]) for a in few.all("rect")]
    np.testing.assert_allclose(np.square(shades), [31 / 48, 17 / 48, 0, 1], atol=0.01)
    many = plots.matrix_plot([f"c{i}" for i in range(100)], np.eye(100, dtype=int))
    assert len(Page(many).all("image")) == 1 and len(many) < 50_000
    assert not Page(plots.matrix_plot([], np.zeros((0, 0), int))).all("rect")


def coordinates(svg):
    (path,) = (a["d"] for a in Page(svg).all("path") if "line" in a["class"].split())
    return np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float)


def test_a_line_goes_through_its_points():
    """Affine on linear axes: equal ratios of differences, y upside down."""
    xs, ys = np.array([0.0, 1, 4, 10]), np.array([3.0, -1, 2, 5])
    drawn = coordinates(plots.line_plot("t", {"train": (xs, ys)}))
    across, up = np.polyfit(xs, drawn[:, 0], 1), np.polyfit(ys, drawn[:, 1], 1)
    np.testing.assert_allclose(np.polyval(across, xs), drawn[:, 0], atol=0.1)
    np.testing.assert_allclose(np.polyval(up, ys), drawn[:, 1], atol=0.1)
    assert across[0] > 0 > up[0]


def test_a_wide_range_is_drawn_by_its_logarithm():
    ys = np.array([100.0, 10, 1, 0.1])
    svg = plots.line_plot("t", {"train": (range(4), ys)}, ylabel="loss")
    steps = np.diff(coordinates(svg)[:, 1])
    np.testing.assert_allclose(steps, steps[0], atol=0.2)
    assert "loss (log)" in svg


def test_a_long_line_is_thinned_but_keeps_its_spikes():
    ys = np.sin(np.arange(100_000) / 5000)
    ys[54_321] = 9.0
    drawn = coordinates(plots.line_plot("t", {"train": (range(100_000), ys)}))
    assert len(drawn) < 1000
    assert drawn[:, 1].min() < np.sort(drawn[:, 1])[1] - 50  # the one spike, far above the rest


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 7), (0.91, 0.93), (0, 98_765), (1e-7, 3e-7)])
def test_ticks_are_round_and_inside(low, high):
    ticks = np.array(plots._ticks(low, high, 5))
    assert 3 <= len(ticks) <= 8 and ticks[0] >= low - 1e-12 and ticks[-1] <= high * (1 + 1e-9)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6


def test_steps_have_no_fractions():
    page = Page(plots.line_plot("t", {"train": ([41], [0.5])}))
    assert "41" in page.text.split() and "40.6" not in page.text.split()


def test_further_tests_stand_beside_the_test(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:-1]
    lines.append(json.dumps({"step": 3, "split": "test_night", "loss": 0.75}) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"test_night/accuracy": 0.625, "test_night/accuracy_low": 0.5}
    summary |= {"test_night/accuracy_high": 0.75}
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run).read_text())
    words = " ".join(page.text.split())
    assert "figure test test_night validation train" in words
    assert "0.6250 [0.5000, 0.7500]" in words and "test accuracy 0.8750" in words  # the headline
    marks = {"test": (2.0, 0.5), "test_day": (2.0, 0.6), "test_night": (2.0, 0.7)}
    curve = plots.line_plot("loss", {"train": ([1, 2], [1.0, 0.5])}, marks=marks)
    keys = re.findall(r'class="key s(\d)">(\w+) ', curve)
    assert len({colour for colour, _ in keys}) == len(keys) == 4


def test_long_texts_may_be_broken_and_short_words_may_not():
    """Else one long word makes a table wider than a phone."""
    page = Page(table(("class", "loss", "text"), [("up", 0.5, "x" * 200), ("down", 0.25, "short")]))
    assert [cell.get("class") for cell in page.all("td")] == [
        *(None, "number", "words"),
        *(None, "number", None),
    ]
    assert re.search(r"\.words\{[^}]*overflow-wrap:anywhere", STYLE)
