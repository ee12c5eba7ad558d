"""How a run starts and ends: what is compiled beside what, what a second run has to compile, what is imported."""

import json
import os
import subprocess
import sys
import threading

import jax
import pytest

from research.data import cache
from research.engine import compiled, parallel

PMAP = pytest.param(("--config.parallel.kind=pmap",), marks=pytest.mark.slow)


@pytest.mark.parametrize("more", [(), PMAP])
def test_compiling_side_by_side_changes_no_bit(launch, small, tmp_path, monkeypatch, more):
    begun, begin = [], compiled._begin

    def counted(make):
        begun.append(make)
        return begin(make)

    monkeypatch.setattr(compiled, "_begin", counted)
    ends = []
    for cores in (1, 8):
        monkeypatch.setattr(compiled, "cpu_cores", lambda cores=cores: cores)
        assert launch(*small, *more, f"--workdir={tmp_path / str(cores)}") == 0
        summary = json.loads((tmp_path / str(cores) / "summary.json").read_text())
        assert summary["seconds_compile"] > 0
        figures = (tmp_path / str(cores) / "metrics.jsonl").read_bytes()
        ends.append((summary["params_sha256"], figures, len(begun)))
    assert ends[0][:2] == ends[1][:2]
    assert [end[2] for end in ends] == [0, 2]  # the step and the prediction


def test_an_error_of_the_background_is_the_runs(launch, small, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "cpu_cores", lambda: 8)

    def fail(*_):
        raise RuntimeError("no room for this program")

    monkeypatch.setattr(compiled.Compiled, "_make_step", fail)
    with pytest.raises(RuntimeError, match="no room for this program"):
        launch(*small, f"--workdir={tmp_path}")


def test_a_second_run_compiles_nothing_anew(launch, small, tmp_path):
    seen = []
    jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
    missed, found = (f"/jax/compilation_cache/cache_{what}" for what in ("misses", "hits"))
    for name in ("first", "second"):
        jax.clear_caches()  # as a new process has none
        seen.clear()
        assert launch(*small, "--config.seed=7", f"--workdir={tmp_path / name}") == 0
    assert seen.count(missed) == 0
    assert seen.count(found) > 3


def test_compiled_programs_that_nobody_reads_go_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(parallel, "MOST_COMPILED", 2500)
    (tmp_path / "xla").mkdir()
    for name, read, written in (("old", 3, 2), ("read", 9, 1), ("unread", 0, 4), ("new", 0, 8)):
        (tmp_path / "xla" / name).write_bytes(bytes(1000))
        os.utime(tmp_path / "xla" / name, (1e9 + read, 1e9 + written))
    before = set(threading.enumerate())
    try:
        parallel.configure()
        for thread in set(threading.enumerate()) - before:
            thread.join()
    finally:
        monkeypatch.undo()
        parallel.configure()
    assert sorted(p.name for p in (tmp_path / "xla").iterdir()) == ["new", "read"]


def test_a_folder_of_programs_that_is_small_or_not_there_is_left_alone(tmp_path):
    cache.keep_within(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()
    (tmp_path / "a").write_bytes(bytes(10))
    cache.keep_within(tmp_path, 9)  # another process may be about to read what was just used
    assert (tmp_path / "a").exists()
    os.utime(tmp_path / "a", (1e9, 1e9))
    cache.keep_within(tmp_path, 10)
    assert (tmp_path / "a").exists()
    cache.keep_within(tmp_path, 9)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("lambda a: 75", 75),
        ("lambda a: 0", 0),
        ("lambda a: 1 / 0", 1),
        ("lambda a: compiling() / 0", 1),
        ("lambda a: sys.exit(2)", 2),
    ],
)
def test_the_way_out_keeps_the_code_and_all_that_is_registered(root, main, code):
    text = (
        "import sys, threading, time, research.modes as modes\n"
        "def compiling():\n"
        "    import jax, jax.numpy as jnp\n"
        "    from research.engine import compiled\n"
        "    many = lambda x: [x := jnp.sin(x @ x) for _ in range(200)][-1]\n"
        "    compiled._begin(jax.jit(many).lower(jnp.ones((9, 9))).compile)\n"
        "    return 1\n"
        "def main(argv):\n"
        "    import atexit\n"
        "    atexit.register(lambda: print('registered'))\n"
        "    threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "    print('main')\n"
        f"    return ({main})(argv)\n"
        "sys.exit(modes.leave_soon(main, []))"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["main", "thread", "registered"]
    assert done.returncode == code
