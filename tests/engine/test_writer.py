"""The run directory's files, read back with other readers than those that wrote them."""

import io
import json
import os
import struct
import subprocess
import sys
import types

import numpy as np
import pytest

from research.engine import environment, files
from research.engine.progress import Lines, Remaining
from research.engine.text import duration, number, print_table
from research.engine.writer import Writer


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def make(tmp_path):
    """Writers of one workdir, as separate processes would have them."""

    def make_writer(first_step=0, *, tensorboard=False, begin=True, stream=None, total=100):
        log = types.SimpleNamespace(tensorboard=tensorboard)
        config = types.SimpleNamespace(seed=7, log=log)
        writer = Writer(tmp_path, config, stream=stream or io.StringIO())
        if begin:
            writer.start_run(first_step, {"data": "abc"}, {"pace": 3.0}, total_steps=total)
        return writer

    return make_writer


def text(workdir):
    return (workdir / "metrics.jsonl").read_text()


def test_lines_hold_exactly_what_was_logged(make, tmp_path):
    writer = make()
    value = np.float32(0.1)
    writer.log(5, "train", {"loss": value, "accuracy": 1 / 3}, {"examples_per_second": 123.0})
    writer.log(10, "validation", {"loss": 1})
    writer.log(10, "test_vendor", {"loss": 2})
    # Read before the end: every line is flushed.
    assert text(tmp_path) == (
        '{"step": 5, "split": "train", "accuracy": 0.3333333333333333, "loss": 0.10000000149011612}\n'
        '{"step": 10, "split": "validation", "loss": 1.0}\n'
        '{"step": 10, "split": "test_vendor", "loss": 2.0}\n'
    )
    assert np.float32(json.loads(text(tmp_path).splitlines()[0])["loss"]) == value


def test_a_new_run_in_an_old_directory_begins_with_no_lines(make, tmp_path):
    make().log(0, "validation", {"loss": 1.0})
    assert text(tmp_path)
    make()
    assert text(tmp_path) == ""


@pytest.mark.parametrize("split, metrics", [("dev", {}), ("test-a", {}), ("train", {"step": 1.0})])
def test_what_would_garble_a_line_is_refused(make, split, metrics):
    with pytest.raises(ValueError, match="split"):
        make().log(1, split, metrics)


@pytest.mark.parametrize(
    "torn", [b'{"step": 5, "split": "tr', b'{"step": 5, "split": "train"}', b"\0\n"]
)
def test_truncate_keeps_earlier_bytes_and_drops_a_torn_line(make, tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    kept = (
        b'{"step": 5, "split": "train",  "loss": 0.50}\n'  # not as we would write it: kept as it is
    )
    path.write_bytes(kept + b'{"step": 6, "split": "train"}\n' + torn)
    writer = make(begin=False)
    writer.truncate(5)
    assert path.read_bytes() == kept
    writer.log(6, "train", {"loss": 0.25})
    assert path.read_bytes() == kept + b'{"step": 6, "split": "train", "loss": 0.25}\n'


def test_a_resumed_run_leaves_the_bytes_of_an_uninterrupted_one(make, tmp_path):
    def steps(writer, first, last):
        for step in range(first + 1, last + 1):
            writer.log(step, "train", {"loss": 1 / step}, {"examples_per_second": 9.0 * step})
        if last == 9:
            writer.log(9, "test", {"accuracy": 0.5})

    steps(make(), 0, 9)
    whole = text(tmp_path)
    steps(make(), 0, 7)  # a new run starts afresh; killed at 7, saved at 4
    steps(make(4), 4, 9)
    assert text(tmp_path) == whole
    make(9).log(9, "test", {"accuracy": 0.5})  # killed after the last step: evaluated again
    assert text(tmp_path) == whole


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": np.float32(0.5), "n": np.int64(3)})
    assert json.loads(path.read_text()) == {"a": 0.5, "n": 3}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text())["a"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def events(path):
    """The TFRecords of an event file, checksums checked."""
    from tensorboardX.proto.event_pb2 import Event

    def check(data, masked):
        crc = crc32c(data)
        assert masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content = path.read_bytes()
    while content:
        size, masked = struct.unpack("<QI", content[:12])
        check(content[:8], masked)
        record = content[12 : 12 + size]
        check(record, struct.unpack("<I", content[12 + size : 16 + size])[0])
        yield Event.FromString(record)
        content = content[16 + size :]


def test_tensorboard_does_not_wait_for_pytorch(root, tmp_path):
    # It is imported by tensorboardX wherever it is installed; later it may be imported as usual.
    (tmp_path / "torch.py").write_text("Tensor = None\nprint('imported')\n")
    code = f"""
from research.engine.tensorboard import TensorBoard
TensorBoard({str(tmp_path / "events")!r}, 0).close()
print("written")
import torch
"""
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["written", "imported"]


def test_tensorboard_events(make, tmp_path):
    def scalars(path):
        return {(v.tag, e.step): v.simple_value for e in events(path) for v in e.summary.value}

    writer = make(tensorboard=True)
    writer.log(50, "train", {"loss": 0.25}, {"examples_per_second": 4012.0})
    writer.log(50, "validation", {"loss": 0.5})
    writer.end_run(75)
    (first,) = (tmp_path / "tensorboard").iterdir()
    assert scalars(first) == {
        ("train/loss", 50): 0.25,
        ("train/examples_per_second", 50): 4012.0,
        ("validation/loss", 50): 0.5,
    }
    first = first.rename(first.with_name("first"))  # a second process has a name of its own
    writer = make(40, tensorboard=True)
    writer.log(50, "train", {"loss": 0.125})
    writer.end_run(0)
    (second,) = set((tmp_path / "tensorboard").iterdir()) - {first}
    assert scalars(second) == {("train/loss", 50): 0.125}
    starts = [e.step for e in events(second) if e.session_log.status == 1]  # SessionLog.START
    assert starts == [41]


def test_run_json_tells_every_session(make, tmp_path):
    import jax

    def run():
        return json.loads((tmp_path / "run.json").read_text())

    make().end_run(75)
    make(40)  # killed
    make(60).end_run(0)
    told = run()
    assert told["command"] == sys.argv and told["seed"] == 7 and told["pace"] == 3.0
    assert told["data"] == {"data": "abc"}
    assert told["versions"]["jax"] == jax.__version__
    assert told["devices"]["count"] == jax.device_count()
    assert told["exit"] == 0 and told["start"] <= told["end"]
    assert [(s["first_step"], s["exit"]) for s in told["sessions"]] == [
        (0, 75),
        (40, None),
        (60, 0),
    ]
    assert told["sessions"][1]["end"] is None
    make(begin=False).end_run(2)  # a mistake found before the run began is no session
    assert run() == told
    make()
    assert len(run()["sessions"]) == 1 and run()["exit"] is None


def test_a_session_elsewhere_tells_what_changed(make, tmp_path, monkeypatch):
    make().end_run(75)
    monkeypatch.setattr(environment, "cpu_cores", lambda: 999)
    make(40)
    session = json.loads((tmp_path / "run.json").read_text())["sessions"][-1]
    assert len(session["environment_changes"]) == 1
    assert session["environment_changes"][0].endswith("now 999")


def test_differences_put_what_changes_bits_first():
    a = {
        "versions": {"python": "3.11.1", "jax": "0.10.2"},
        "cpu_cores": 2,
        "devices": {"kind": "cpu", "count": 1},
        "xla_flags": "--b --a",
        "git": {"revision": "abc", "dirty": False},
    }
    b = {
        "versions": {"python": "3.12.0", "jax": "0.12.0"},
        "cpu_cores": 4,
        "devices": {"kind": "cpu", "count": 1},
        "xla_flags": "--a --b",
    }
    assert environment.differences(a, a) == []
    assert environment.differences(a, b) == [
        "jax version: 0.10.2, now 0.12.0",
        "CPU cores: 2, now 4",
        "python version: 3.11.1, now 3.12.0",
        "git revision: abc, now none",
        "git changes: False, now none",
    ]


def test_git_revision_and_its_absence(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._git(tmp_path) is None

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *who, "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "launch.py").write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    assert environment._git(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "notes.txt").write_text("no code")
    assert not environment._git(tmp_path)["dirty"]
    (tmp_path / "launch.py").write_text("changed")
    assert environment._git(tmp_path)["dirty"]
    monkeypatch.setenv("PATH", "")
    assert environment._git(tmp_path) is None


def test_plain_lines():
    times = iter([0.0, 10.0])
    stream = io.StringIO()
    lines = Lines(2344, 0, stream, clock=lambda: next(times))
    lines.log(200, "train", {"accuracy": 0.5, "loss": 1.25}, 4012.7)
    lines.log(200, "validation", {"loss": 0.5, "accuracy": 0.75, "accuracy_low": 0.7}, 0.0)
    lines.log(400, "train", {"loss": 0.312, "accuracy": 0.89}, 4012.7)
    assert stream.getvalue().splitlines() == [
        "step 200/2,344  loss 1.25  accuracy 0.5  4,012 examples/s",
        "step 200/2,344  validation  loss 0.5  accuracy 0.75",
        "step 400/2,344  loss 0.312  accuracy 0.89  4,012 examples/s  1:37 left",
    ]


def test_remaining_time_follows_the_newest_pace():
    times = iter([*range(0, 1000, 100), *range(1000, 1030)])  # slow at first, then a step a second
    remaining = Remaining(100, clock=lambda: next(times))
    said = [remaining.update(step) for step in range(1, 41)]
    assert said[0] == "" and said[-1] == "1:00"
    assert Remaining(None).update(5) == ""


def test_bar_on_a_terminal(make, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    writer = make(stream=stream, total=2344)
    writer.log(400, "train", {"loss": 0.312}, {"examples_per_second": 4012.0})
    writer.log(390, "validation", {"accuracy": 0.89})
    writer.say("[red] is no markup")
    writer.tick(401)
    writer.end_run(0)
    shown = stream.getvalue()
    for words in ("401/2,344", "loss 0.312", "4,012 examples/s", "accuracy 0.89", "at step 390"):
        assert words in shown
    assert "[red] is no markup" in shown and "\x1b[" in shown


def test_print_table():
    rows = [("a", 12345, "0.9000"), ("longer", 1, "0.25")]
    stream = io.StringIO()
    print_table(("name", "n", "value"), rows, title="All", stream=stream)
    assert stream.getvalue().splitlines() == [
        "All",
        "name         n   value",
        "------  ------  ------",
        "a       12,345  0.9000",
        "longer       1    0.25",
    ]
    stream = Terminal()
    print_table(("name",), [("[bold]",)], stream=stream)
    assert "[bold]" in stream.getvalue() and "┃" in stream.getvalue()
    print_table(("name",), [], stream=io.StringIO())


@pytest.mark.parametrize(
    "value, words",
    [(0.89, "0.89"), (1 / 3, "0.3333"), (1234.5, "1,234"), (1.234e-5, "1.234e-05"), (7, "7")],
)
def test_number(value, words):
    assert number(value) == words


def test_duration():
    assert [duration(s) for s in (42, 725, 3667, 180_067)] == [
        "0:42",
        "12:05",
        "1:01:07",
        "2 d 2:01:07",
    ]
