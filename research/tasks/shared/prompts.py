"""What a user wants predicted, judged or gone on with: texts, and conversations of which the next turn is wanted.

A .txt file holds a text on each line, a .jsonl file a JSON object: {"text": "..."}. For a model of conversations a text
is what a user says; {"messages": [{"role": "...", "content": "..."}, ...]} is a whole conversation. The files that such
a model is trained on can be given as they are: {"prompt": "..."} is a text too, answers and last turns that are there
already are left out.
"""

import json
from pathlib import Path
from typing import Any

from research.errors import UserError, UserErrors
from research.task import Prompt

ENDINGS = (".txt", ".jsonl")  # of files that hold texts to predict
_TEXTS = ("text", "prompt")
_MESSAGE = '{"role": "user", "content": "..."}'


def read_texts(paths: list[str], prompt: str) -> tuple[list[str], list[str]]:
    """Returns names and texts: the prompt, or every line of .txt files and the 'text' of every line of .jsonl files.

    Raises:
      UserErrors: a file is missing, of another kind, not UTF-8 or not JSON; or there is nothing to read.
    """
    found = _read(paths, prompt, chat=False)
    return [name for name, _ in found], [text for _, text in found]


def read_prompts(paths: list[str], prompt: str, *, chat: bool) -> list[Prompt]:
    """Returns what to go on with: texts, or with `chat` lists of {"role", "content"}, the last not the assistant's.

    Raises:
      UserErrors: as `read_texts`.
    """
    found = _read(paths, prompt, chat=chat)
    if not chat:
        return [Prompt(name, text, text) for name, text in found]
    return [Prompt(name, messages, _dialogue(messages)) for name, messages in found]


def _dialogue(messages: list[dict[str, str]]) -> str:
    said = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    return f"{said}assistant: "


def _read(paths: list[str], prompt: str, *, chat: bool) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    lines: list[str] = []
    if prompt:
        found.append(("prompt", _said(prompt) if chat else prompt))
    for path in map(Path, paths):
        if not path.is_file() or path.suffix not in ENDINGS:
            why = "no such file" if not path.exists() else f"ends in none of {', '.join(ENDINGS)}"
            lines.append(f"--inputs={path}: {why}")
            continue
        try:
            content = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            lines.append(f"--inputs={path}: byte {error.start} is not UTF-8; convert the file")
            continue
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip():
                continue
            try:
                given = _object(line, chat) if path.suffix == ".jsonl" else line.rstrip("\r")
            except UserError as error:
                lines.append(f"--inputs={path}, line {number}: {error}")
                continue
            found.append(
                (f"{path}:{number}", _said(given) if chat and isinstance(given, str) else given)
            )
    if lines:
        raise UserErrors(lines)
    if not found:
        raise UserError(
            "give --prompt='a text', or --inputs=a.txt,b.jsonl with a text on each line"
        )
    return found


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _object(line: str, chat: bool) -> Any:
    wanted = 'must be JSON such as {"text": "..."}' + f' or {{"messages": [{_MESSAGE}]}}' * chat
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(wanted) from error
    if not isinstance(row, dict):
        raise UserError(wanted)
    if chat and "messages" in row:
        return _conversation(row["messages"])
    text = next((row[name] for name in _TEXTS if name in row), None)
    if not isinstance(text, str):
        raise UserError(wanted)
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
