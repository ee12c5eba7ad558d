"""The parts of a self-contained HTML page: what is written, tables, pictures, drawings."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from research.engine.facts import tables
from research.engine.plots import line_plot, matrix_plot, png
from research.engine.text import figure, number
from research.task import Section

_SMALL = 96  # pictures up to this many pixels are enlarged, pixel by pixel
_LARGE = 256  # larger ones are made smaller, or the page would weigh megabytes
_SENTENCE = 40  # characters from which on a cell is text to be read, and may be broken anywhere
_CONFUSIONS = 12  # most frequent mistakes listed under a confusion matrix


def document(title: str, body: Iterable[str]) -> str:
    """A whole page. Its policy forbids scripts and anything from outside, whatever it holds."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def section(part: Section) -> str:
    """A section of the page, by its kind.

    Raises:
        ValueError: the kind is not known.
    """
    if part.kind not in _KINDS:
        raise ValueError(f"section {part.title!r}: kind {part.kind!r} is not one of {[*_KINDS]}")
    return _KINDS[part.kind](part.title, part.content)


def heading(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls in its own box; numbers are aligned right."""
    rows = [tuple(row) for row in rows]
    # A column is numbers if its first cell is.
    first = rows[0] if rows else [""] * len(header)
    styles = [' class="number"' if _is_number(cell) else "" for cell in first]
    head = "".join(
        f"<th{style}>{html.escape(str(name))}</th>"
        for name, style in zip(header, styles, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row, styles))}</tr>" for row in rows)
    return (
        f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """Content behind a title that opens it."""
    return _behind(title, f'<pre class="scroll tall">{html.escape(content)}</pre>')


def _behind(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) or str(value).endswith("%")


def _cell(value: Any, style: str) -> str:
    if isinstance(value, str) and len(value) > _SENTENCE:
        style = ' class="words"'
    if isinstance(value, float | np.floating):
        text = figure(float(value))
    else:
        text = number(value) if isinstance(value, int | np.integer) else html.escape(str(value))
    return f"<td{style}>{text}</td>"


def _text(title: str, content: str) -> str:
    paragraphs = "".join(f"<p>{html.escape(p)}</p>" for p in content.split("\n\n"))
    return heading(title, paragraphs)


def _table(title: str, content: tuple[Sequence[str], Iterable[Sequence[Any]]]) -> str:
    return heading(title, table(*content))


def _matrix(title: str, content: tuple[Sequence[str], np.ndarray]) -> str:
    names, matrix = content[0], np.asarray(content[1])
    wrong = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [np.unravel_index(k, matrix.shape) for k in order if wrong.flat[k]]
    rows = [
        (names[i], names[j], int(matrix[i, j]), f"{matrix[i, j] / matrix[i].sum():.1%}")
        for i, j in pairs
    ]
    listed = table(("true class", "predicted", "examples", "of the class"), rows)
    mistakes = f"<div><h3>Most frequent mistakes</h3>{listed}</div>" if rows else ""
    drawing = f'<div class="drawing">{matrix_plot(names, matrix)}</div>'
    return heading(title, f'<div class="beside">{drawing}{mistakes}</div>')


def _images(title: str, content: Iterable[tuple[np.ndarray, str]]) -> str:
    figures = "".join(map(_picture, content))
    return heading(title, f'<div class="pictures">{figures}</div>' if figures else "<p>None.</p>")


def _picture(content: tuple[np.ndarray, str]) -> str:
    image, caption = np.asarray(content[0]), html.escape(content[1])
    small = max(image.shape[:2]) <= _SMALL
    step = -(-max(image.shape[:2]) // _LARGE)
    if step > 1:
        height, width = (n // step * step for n in image.shape[:2])
        blocks = image[:height, :width].reshape(height // step, step, width // step, step, -1)
        image = blocks.mean((1, 3)).astype(np.uint8)
    style = ' class="pixels"' if small else ""
    return (
        f'<figure><img{style} src="{png(image)}" alt="{caption}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _curve(title: str, content: dict[str, Any]) -> str:
    plot = line_plot(
        content.get("title", title),
        content["series"],
        xlabel=content.get("xlabel", ""),
        ylabel=content.get("ylabel", ""),
    )
    return heading(title, f'<div class="plots">{plot}</div>')


def _facts(title: str, content: Mapping[str, Any]) -> str:
    parts = [
        f"<h3>{html.escape(facts.title)}</h3>{table(facts.header, facts.rows)}"
        for facts in tables(content)
    ]
    return f"<section>{_behind(title, ''.join(parts))}</section>"


_KINDS: dict[str, Callable[[str, Any], str]] = {
    "text": _text,
    "table": _table,
    "matrix": _matrix,
    "images": _images,
    "curve": _curve,
    "facts": _facts,
}

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5c6570;--line:#dfe3e8;
--c0:#2a78d6;--c1:#de5c2c;--c2:#148a61;--c3:#8a5cc9;--c4:#b5861b;--c5:#c2417f;--c6:#4a5a6a;--c7:#1790a6;
--hit:#2a78d6;--miss:#de5c2c}
@media(prefers-color-scheme:dark){:root{--page:#121417;--card:#1c2025;--ink:#e7eaee;--soft:#9aa5b1;
--line:#333a42;--c0:#6aa9f4;--c1:#f58b5e;--c2:#4cc596;--c3:#b795ec;--c4:#dfb24f;--c5:#ec7fb0;--c6:#a9b6c3;
--c7:#58c4d8;--hit:#3d87dd;--miss:#e2693a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);overflow-wrap:anywhere;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.15rem;margin:0 0 12px}
h3{font-size:1rem;margin:20px 0 8px}
p{margin:0 0 8px}
.note,.sub{color:var(--soft);font-size:.875rem}
section,.tile,.plot{background:var(--card);border:1px solid var(--line);border-radius:10px}
section{padding:16px;margin-top:16px}
.headline{font-size:2.25rem;font-weight:650;line-height:1.2}
.headline small{font-size:1rem;font-weight:400;color:var(--soft);white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(144px,1fr));gap:10px;margin-top:16px}
.tile{padding:10px 12px}.tile b{display:block;font-size:1.15rem;font-weight:600}
.tile span{color:var(--soft);font-size:.8125rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:12px}
.plot{margin:0;padding:10px 10px 4px;max-width:620px}
figcaption{font-size:.875rem}
.key{color:var(--soft);white-space:nowrap;margin-left:10px}.key b{color:var(--ink);font-weight:600}
.key:before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px;background:var(--s)}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft)}
.plot svg{font-size:12.5px}
.mid,.none{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--soft);fill:none;stroke-opacity:.6}
.line{stroke:var(--s);fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.level{stroke:var(--s);stroke-dasharray:5 4;stroke-opacity:.8;fill:none}.dot{fill:var(--s)}
.s0{--s:var(--c0)}.s1{--s:var(--c1)}.s2{--s:var(--c2)}.s3{--s:var(--c3)}
.s4{--s:var(--c4)}.s5{--s:var(--c5)}.s6{--s:var(--c6)}.s7{--s:var(--c7)}
.scroll{overflow-x:auto}.tall{max-height:34rem;overflow-y:auto}
.matrix rect{stroke:var(--line);stroke-width:.5}.hit{fill:var(--hit)}.miss{fill:var(--miss)}
.matrix .frame{fill:none}.matrix text{fill:var(--ink)}.matrix .strong{fill:#fff;font-weight:600}
.matrix image{image-rendering:pixelated}
table{border-collapse:collapse;font-size:.9375rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line);overflow-wrap:normal}
th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:600;font-size:.8125rem}
td small{color:var(--soft);white-space:nowrap}
.number{text-align:right}
.words{white-space:pre-line;overflow-wrap:anywhere;min-width:9rem;unicode-bidi:plaintext}
.beside{display:flex;flex-wrap:wrap;gap:8px 40px}.beside>*{min-width:0;max-width:100%}
.beside h3:first-child{margin-top:0}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:14px}
.pictures figure{margin:0}.pictures figcaption{font-size:.75rem;line-height:1.3;color:var(--soft);margin-top:4px}
.pictures img{width:100%;display:block;border:1px solid var(--line);border-radius:6px}
.pixels{image-rendering:pixelated}
summary{cursor:pointer;font-weight:600;font-size:1.05rem}
pre{font:.8125rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;margin:12px 0 0}
@media(max-width:560px){section{padding:12px}td small{display:block}.words{min-width:6.5rem}th,td{padding-right:10px}
.headline small{display:block}}
"""
