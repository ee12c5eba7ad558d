"""Conversations as text by a chat template (Jinja), and where in it the assistant speaks.

Templates come with foreign files, so they run in a sandbox. Everything is as in `apply_chat_template` of transformers
5.24: blocks are trimmed, `raise_exception`, `strftime_now` and `tojson` exist, `{% break %}`, `{% continue %}` and
`{% generation %}` are known. But for one thing: `strftime_now` gives `TODAY`, for a run that is gone on with on another
day, or run again, has to read the same tokens.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import UserError

Messages = Sequence[Mapping[str, Any]]
Spans = list[tuple[int, int]]  # of characters, [start, end)

# What a tokenizer that brings none uses: a turn is '<|role|>', a line with the content, and the end-of-text token.
DEFAULT = (
    "{%- set end = eos_token or sep_token or '' %}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + end + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

# What templates take for the present: the date that those of Llama 3 write where they can't ask for today's.
TODAY = datetime.datetime(2024, 7, 26)

_START, _END, _MARK = "\ufdd0", "\ufdd1", "\ufdd2"  # Unicode noncharacters, which no text holds


def render(template: str, messages: Messages, *, answer: bool, special: Mapping[str, str]) -> str:
    """Returns the conversation as one text.

    Args:
      template: a Jinja template.
      messages: each {"role": ..., "content": ...}.
      answer: adds what opens the assistant's next turn.
      special: 'bos_token' and its like -> the token's text, which the template may use.

    Raises:
      UserError: the template is no template, or refuses these messages.
    """
    text = _rendered(template, messages, answer, special)
    return text.replace(_START, "").replace(_END, "")


def spans(
    template: str,
    messages: Messages,
    *,
    answer: bool,
    special: Mapping[str, str],
    ends: Sequence[str],
) -> tuple[str, Spans]:
    """Returns the conversation as one text, and the spans of the assistant's turns, with the token that ends each.

    A template that marks them by `{% generation %}` has said where they are. For others, a turn begins where the
    conversation before it, opened for an answer, ends, and goes on to where the conversation with it ends, without the
    white space after one of the tokens `ends`. A template that writes a turn otherwise when it is the last one
    (thoughts are dropped from earlier turns) is met by putting a mark in the place of the turn's content.

    Raises:
      UserError: as `render`; or a turn can't be found, as the template writes earlier text otherwise.
    """
    marked = _rendered(template, messages, answer, special)
    text = marked.replace(_START, "").replace(_END, "")
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return text, _marked_spans(marked)
    found: Spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            after = found[-1][1] if found else 0
            found.append(_turn(text, template, messages, i, after, answer, special, ends))
    return text, found


def _turn(text, template, messages, i, after, answer, special, ends) -> tuple[int, int]:
    """Returns the span of message i in `text`, knowing that it begins at `after` or later."""
    opened = _prefix(text, template, messages[:i], True, special)
    closed = _prefix(text, template, messages[: i + 1], False, special)
    if opened is not None and closed is not None and after <= opened < closed:
        turn = text[opened:closed]
        if turn.rstrip().endswith(tuple(ends)):
            closed = opened + len(turn.rstrip())
        return opened, closed
    # The same conversation with a mark in the content's place says what stands before and behind it.
    replaced = [*messages[:i], {**messages[i], "content": _MARK}, *messages[i + 1 :]]
    before, mark, behind = _rendered(template, replaced, answer, special).partition(_MARK)
    begin, close = len(before), len(text) - len(behind)
    if not (mark and text.startswith(before) and text.endswith(behind) and after <= begin <= close):
        raise UserError(
            f"the tokenizer's chat template: can't tell which tokens are the assistant's in message {i + 1} of "
            f"{len(messages)}, as the template writes what precedes it otherwise when more follows; mark the "
            "assistant's part by {% generation %} .. {% endgeneration %} in the template, or split the conversation"
        )
    token = re.match(r"\s*(" + "|".join(map(re.escape, ends)) + ")", behind) if ends else None
    return (begin if opened is None else opened), close + (token.end() if token else 0)


def _prefix(text: str, template: str, messages: Messages, answer: bool, special) -> int | None:
    """Returns the length of these messages' text if `text` begins with it, else None."""
    try:
        begin = render(template, messages, answer=answer, special=special)
    except UserError:  # a conversation that the template won't have, such as an empty one
        return None
    return len(begin) if text.startswith(begin) else None


def _marked_spans(marked: str) -> Spans:
    found, place, start = [], 0, 0
    for piece in re.split(f"([{_START}{_END}])", marked):
        if piece == _START:
            start = place
        elif piece == _END:
            found.append((start, place))
        else:
            place += len(piece)
    return found


def _rendered(template: str, messages: Messages, answer: bool, special: Mapping[str, str]) -> str:
    import jinja2

    said = json.dumps(list(messages), ensure_ascii=False)
    if _START in said or _END in said:
        raise UserError("a message holds U+FDD0 or U+FDD1, which are no characters; take them out")
    try:
        return _compiled(template).render(
            messages=json.loads(said),  # plain data: the template gets nothing else to touch
            tools=None,
            documents=None,
            add_generation_prompt=answer,
            **special,
        )
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the tokenizer's chat template, line {error.lineno}: {error.message}"
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(
            f"the tokenizer's chat template refuses a conversation of ({roles}): {error}"
        ) from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str):
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} .. {% endgeneration %}`, kept between two marks."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

        def mark(self, caller) -> str:
            return f"{_START}{caller()}{_END}"

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Jinja's own escapes what HTML would read
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: TODAY.strftime(form)
    return environment.from_string(template)
