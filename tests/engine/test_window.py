"""The seconds of a run, by a clock that the test sets."""

import time

from research.engine.window import Clock


def test_what_follows_the_loop_is_no_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    clock = Clock({"seconds_training": 4.0, "steps_timed": 2})
    wait(1)  # compiling
    clock.start()
    wait(10)
    with clock.measure("seconds_evaluation", apart=True):
        wait(2)
    clock.put("steps_timed", 8)
    clock.stop()
    wait(50)  # the test's predictions
    summary = clock.summary(batch_size=7)
    assert summary["seconds_training"] == 4 + 10
    assert summary["examples_per_second"] == 10 * 7 / 14
    assert summary["seconds_total"] == 63
