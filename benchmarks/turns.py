"""What the comparisons share: sides in processes of their own that take turns on the same cores.

A side reads questions and answers each by one line of JSON; between its turns it sleeps. It may be of another
interpreter: this file needs none but Python's own modules.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
PAUSE = 0.05  # seconds before a turn, in which the other sides' threads fall asleep
Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class Ended(SystemExit):
    """A side's process is gone. Where nobody catches it, the command ends with this line and code 1."""


class Worker:
    """Another process, asleep until it is asked.

    Args:
      python: its interpreter.
      script: a file of benchmarks/, which calls `serve`.
      given: its arguments.
      threads: of OpenMP.
      wait: OMP_WAIT_POLICY, how those threads wait for work; '' is as it comes: busily for a moment, then asleep.
      env: more of its environment.
    """

    def __init__(
        self,
        python: str,
        script: str,
        *given: Any,
        threads: int = 2,
        wait: str = "",
        env: dict[str, str] | None = None,
    ):
        self.wait = wait.lower() or "as it comes"
        self._script = script
        more = {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / script), *map(str, given)],
            env=os.environ | more | ({"OMP_WAIT_POLICY": wait} if wait else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Returns the answer.

        Raises:
          Ended: there is none.
        """
        assert self._process.stdin and self._process.stdout
        line = ""
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            raise Ended(f"error: the process of {self._script} ended; its own words are above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and waits until its memory is free."""
        self._process.kill()
        self._process.communicate()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers questions until there are no more. What anything else prints goes to the standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=out, flush=True)


def answering(
    make: Callable[..., tuple[Any, dict[str, Any]]], **others: Callable[..., dict[str, Any]]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns what `serve` takes, of a side that makes something and is then asked for its methods.

    Args:
      make: answers {"do": "make", ...}: what is made, and what is said of it.
      others: answer what is asked by their names, made or not; 'memory' is answered here.
    """
    made: list[Any] = [None]

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        do = asked.pop("do")
        if do == "make":
            made[0], about = make(**asked)
            return about
        if do == "memory":
            return {"peak_mb": peak_mb()}
        return (others[do] if do in others else getattr(made[0], do))(**asked)

    return answer


def pin(count: int) -> int:
    """Keeps this process and those it starts on so many cores; call it before JAX counts them. Returns how many."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)


def timed(step: Callable[[], Any], count: int) -> dict[str, list[float]]:
    """Returns the ms of each of `count` calls, by the clock and of the processor over all threads.

    Other programs disturb the second less. A call has to wait for its result itself.
    """
    times: dict[str, list[float]] = {"ms": [], "processor_ms": []}
    for _ in range(count):
        start = time.perf_counter(), time.process_time()
        step()
        times["ms"].append((time.perf_counter() - start[0]) * 1e3)
        times["processor_ms"].append((time.process_time() - start[1]) * 1e3)
    return times


def in_turn(
    turns: dict[Key, Callable[[], Answer]], rounds: int, warm: int = 1
) -> dict[Key, list[Answer]]:
    """Returns what each turn gave in each of the rounds; `warm` further rounds before them do not count."""
    taken: dict[Key, list[Answer]] = {key: [] for key in turns}
    for i in range(warm + rounds):
        for key, turn in turns.items():
            time.sleep(PAUSE)
            answer = turn()
            if i >= warm:
                taken[key].append(answer)
    return taken


def peak_mb() -> float:
    """Returns the most memory, in MiB, that this process has had resident until now."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 1024)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Ours over theirs, round by round: what slows a whole round down then counts on both sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(ratios(ours, theirs))
