"""Runs one experiment: flags -> config -> one mode.

    python launch.py --config=configs/digits_cnn.py --workdir=runs/digits
    python launch.py --config=configs/digits_cnn.py --config.train.duration=epochs=2 --mode=check
    python launch.py --workdir=runs/digits --mode=evaluate
    python launch.py --workdir=runs/digits --mode=predict --inputs=a.png,folder/
    python launch.py --workdir=runs/lm --mode=predict --prompt='def main('

Exit codes: 0 done; 2 a mistake in what was given, one line says which; 75 stopped by SIGTERM or SIGINT with everything
saved, the same command goes on; 130 interrupted where there was nothing to save, or a second time; 1 anything else.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from errno import EACCES, EDQUOT, EEXIST, EISDIR, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS

import research.modes

FULL = (ENOSPC, EDQUOT)
BARRED = (EACCES, EPERM, EROFS, ENOENT, ENOTDIR, EISDIR, EEXIST)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):  # one line instead of the usage
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message += self._hint(unknown.partition(" ")[0].partition("=")[0])
        self.exit(2, f"error: {message}; --help lists the flags\n")

    def _hint(self, word: str) -> str:
        from research.config import ELSEWHERE
        from research.errors import nearest

        if not word.startswith("--"):
            return " (commas go between several --inputs)"
        if key := ELSEWHERE.get(word[2:]):
            return f" (did you mean '--config.{key}'?)"
        return nearest(word, [name for action in self._actions for name in action.option_strings])


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Returns the flags, and the overrides (key, text) of `--config.key=text`."""
    modes = [m.name for m in pkgutil.iter_modules(research.modes.__path__) if not m.ispkg]
    parser = _Parser(
        "launch.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="configs/NAME.py[:ARG]; left out, the workdir's own")
    parser.add_argument("--config.KEY", help="sets a key, as --config.train.batch_size=64")
    parser.add_argument("--workdir", help="the run directory")
    parser.add_argument(
        "--mode", default="train", choices=modes, help="what to do; train if left out"
    )
    parser.add_argument("--inputs", help="predict: files, folders; commas between")
    parser.add_argument("--prompt", help="predict: a text to go on with or to judge")
    parser.add_argument("--output", help="reproduce, export: the directory to write")
    parser.add_argument("--format", help="export: FORMAT, or torch:NAMING")
    parser.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="check: compiles the step, for XLA's own figures",
    )
    flags, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            flags.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals and (not words or words[0].startswith("--")):
            parser.error(f"{word}: needs a value, as in {word}=1")
        overrides.append((key, text if equals else words.pop(0)))
    return parser.parse_args(flags), overrides


def main(argv: Sequence[str]) -> int:
    flags, overrides = parse(argv)
    from research.errors import Failure, UserError

    try:
        with research.modes.signals(flags.mode) as flags.stop:
            mode = importlib.import_module(f"research.modes.{flags.mode}")
            config, mistakes = research.modes.find_config(flags, overrides)
            code = mode.run(config, mistakes, flags)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command begins or goes on again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still flushed at exit
        return int(flags.mode in ("train", "reproduce"))  # these may have been cut short
    except OSError as error:
        if error.errno not in FULL + BARRED:
            raise
        where = error.filename or flags.workdir
        line = f"{where}: {(error.strerror or str(error)).lower()}; mend that"
        if error.errno in FULL:
            line = f"no space left on the disk of {where}; all checkpoints are whole; free some"
        print(f"error: {line} and give the same command again", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(research.modes.leave_soon(main, sys.argv[1:]))
