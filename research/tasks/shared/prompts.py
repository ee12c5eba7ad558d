"""What a user wants predicted, judged or gone on with: texts, and conversations of which the next turn is wanted.

A .txt file holds a text on each line, a .jsonl file a JSON object: {"text": "..."}. For a model of conversations a text
is what a user says; {"messages": [{"role": "...", "content": "..."}, ...]} is a whole conversation. The files that such
a model is trained on can be given as they are: {"prompt": "..."} is a text too, answers and last turns that are there
already are left out.
"""

from pathlib import Path
from typing import Any

from research.data.text.clean import lone_surrogate, mend, mend_chat
from research.data.text.files import TextError
from research.data.text.files import read as read_text
from research.data.text.rows import read_rows, some
from research.errors import UserError, UserErrors
from research.task import Prompt

ENDINGS = (".txt", ".jsonl")  # of files that hold texts to predict
_TEXTS = ("text", "prompt")
_MESSAGE = '{"role": "user", "content": "..."}'


def read_texts(paths: list[str], prompt: str | None, form: str) -> tuple[list[str], list[str]]:
    """Returns names and texts: the prompt, or every line of .txt files and the 'text' of every line of .jsonl files.

    Args:
      prompt: None: none is given; '' is an empty text.
      form: config.data.text.normalise; the texts are mended as those are that a model learns from.

    Raises:
      UserErrors: a file is missing, of another kind, not UTF-8 or not JSON; a text holds half a character; or there
        is nothing to read.
    """
    found = _read(paths, prompt, form, chat=False)
    return [name for name, _ in found], [text for _, text in found]


def read_prompts(paths: list[str], prompt: str | None, form: str, *, chat: bool) -> list[Prompt]:
    """Returns what to go on with: texts, or with `chat` lists of {"role", "content"}, the last not the assistant's.

    Raises:
      UserErrors: as `read_texts`.
    """
    found = _read(paths, prompt, form, chat=chat)
    if not chat:
        return [Prompt(name, text, text) for name, text in found]
    return [Prompt(name, messages, _dialogue(messages)) for name, messages in found]


def _dialogue(messages: list[dict[str, str]]) -> str:
    said = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    return f"{said}assistant: "


def _read(paths: list[str], prompt: str | None, form: str, *, chat: bool) -> list[tuple[str, Any]]:
    given: list[tuple[str, str, Any]] = []  # name, place for messages, text or messages
    lines: list[str] = []
    if prompt is not None:
        given.append(("prompt", "--prompt", prompt))
    for path in map(Path, paths):
        if not path.is_file() or path.suffix not in ENDINGS:
            why = "no such file" if not path.exists() else f"ends in none of {', '.join(ENDINGS)}"
            lines.append(f"--inputs={path}: {why}")
            continue
        read = _json_lines if path.suffix == ".jsonl" else _lines
        try:
            rows = read(path)
        except UserErrors as error:
            lines += [f"--inputs={line}" for line in error.lines]
            continue
        except (UserError, TextError) as error:
            lines.append(f"--inputs={error}")
            continue
        for number, row in rows:
            place = f"--inputs={path} line {number}"
            try:
                given.append((f"{path}:{number}", place, _given(row, chat)))
            except UserError as error:
                lines.append(f"{place}: {error}")
    found: list[tuple[str, Any]] = []
    for name, place, one in given:
        messages = _said(one) if isinstance(one, str) else one
        said = [text for message in messages for text in message.values()]
        if broken := next(filter(None, map(lone_surrogate, said)), ""):
            lines.append(f"{place}: holds {broken}; take it out")
        elif chat:
            found.append((name, mend_chat(messages, form)[0]))
        else:
            found.append((name, mend(one, form).text))
    if lines:
        raise UserErrors(lines)
    if not found:
        raise UserError(
            "give --prompt='a text', or --inputs=a.txt,b.jsonl with a text on each line"
        )
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = read_rows(path).rows
    if broken := [row.broken for row in rows if row.broken]:
        raise UserErrors(some(broken, str(path)))
    return [(row.number, row.values) for row in rows]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _given(row: str | dict[str, Any], chat: bool) -> Any:
    if isinstance(row, str):
        return row
    if chat and "messages" in row:
        return _conversation(row["messages"])
    text = next((row[name] for name in _TEXTS if name in row), None)
    if not isinstance(text, str):
        also = f' or {{"messages": [{_MESSAGE}]}}' * chat
        raise UserError(f'must be JSON such as {{"text": "..."}}{also}')
    return text


def _conversation(messages: Any) -> list[dict[str, str]]:
    wanted = f"'messages' must be a list of {_MESSAGE}"
    keys = ("role", "content")
    if not isinstance(messages, list):
        raise UserError(wanted)
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in keys):
            raise UserError(wanted)
    kept = [{key: message[key] for key in keys} for message in messages]
    if kept and kept[-1]["role"] == "assistant":  # what is to be written
        kept.pop()
    if not kept:
        raise UserError("'messages' hold nothing that could be answered; add what the user says")
    return kept
