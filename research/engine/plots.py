"""Plots as inline SVG: no library, no script, and colours that follow the page (light or dark)."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

Points = tuple[Sequence[float], Sequence[float]]

# Units of the drawing, not pixels: it is scaled to the page's width.
_WIDTH, _HEIGHT = 440, 264
_RIGHT, _TOP, _BOTTOM = 12, 10, 42  # the left margin is as wide as the labels there
_MOST_POINTS = 400  # drawn of a line; more cannot be told apart
_COLOURS = {"train": 0, "validation": 1, "test": 2}
_CELL = 34  # side of a confusion matrix's cell with a number in it
_NUMBERED = 25  # classes up to which the cells hold numbers


def line_plot(
    title: str,
    series: Mapping[str, Points],
    *,
    xlabel: str = "",
    ylabel: str = "",
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """A figure of lines over one pair of axes, with a legend that tells the last values.

    The y axis is logarithmic where positive values span more than a factor of 50. Values that
    are not finite leave a gap.

    Args:
        title: set above.
        series: name -> (xs, ys). 'train', 'validation' and 'test' keep their colours everywhere.
        xlabel, ylabel: of the axes.
        marks: name -> (x, y), single points, with a level line through each.
    """
    marks = dict(marks or {})
    names = [*series, *marks]
    lines = {name: _finite(points) for name, points in series.items()}
    every = [np.stack(line) for line in lines.values()]
    every += [np.array([[x], [y]], float) for x, y in marks.values()]
    flat = np.concatenate([*every, np.zeros((2, 0))], axis=1)
    flat = flat[:, np.isfinite(flat).all(0)]
    body = '<text class="none" x="50%" y="50%">nothing to draw</text>'
    if flat.size:
        body = _axes_and_lines(flat, lines, marks, xlabel, ylabel)
    keys = "".join(
        f'<span class="key s{_colour(name, i)}">{html.escape(name)} <b>{_last(lines, marks, name)}</b>'
        "</span> "
        for i, name in enumerate(names)
    )
    return (
        f'<figure class="plot"><figcaption><b>{html.escape(title)}</b> {keys}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{body}</svg></figure>"
    )


def matrix_plot(names: Sequence[str], matrix: np.ndarray) -> str:
    """A confusion matrix as a heat map: rows are true classes, columns what they were taken for.

    Shade is the square root of the share of the row, so that rare mistakes are seen. With many
    classes the cells hold no numbers and are the pixels of one picture.
    """
    matrix = np.asarray(matrix)
    c = len(names)
    cell, font = (_CELL, 12) if c <= _NUMBERED else (10, 8)
    labels = [_shorten(str(name)) for name in names]
    longest = max(map(len, labels), default=0)
    margin = round(longest * font * 0.6) + 10
    flat = longest * font * 0.6 < cell - 4  # column names that fit are not turned
    above = font + 10 if flat else margin
    side, height = margin + c * cell, above + c * cell
    share = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    cells = (_numbered if c <= _NUMBERED else _pixels)(matrix, share, names, margin, above, cell)
    text = []
    for i, label in enumerate(map(html.escape, labels)):
        middle, level = margin + (i + 0.5) * cell, above + (i + 0.5) * cell + font * 0.35
        text.append(f'<text class="end" x="{margin - 5}" y="{level:.1f}">{label}</text>')
        if flat:
            text.append(f'<text class="mid" x="{middle}" y="{above - 5}">{label}</text>')
        else:
            at = f"translate({middle + font * 0.35:.1f} {above - 5}) rotate(-90)"
            text.append(f'<text transform="{at}">{label}</text>')
    # On a narrow screen the drawing scrolls rather than shrinks out of sight.
    width = f"width:100%;min-width:{round(side * (0.72 if c <= _NUMBERED else 0.85))}px;max-width:{side}px"
    return (
        '<p class="note">Rows: true class. Columns: predicted class. '
        "Shade: share of the row (square root).</p>"
        f'<div class="scroll"><svg class="matrix" style="{width}" viewBox="0 0 {side} {height}" '
        f'font-size="{font}" role="img" aria-label="confusion matrix">{cells}{"".join(text)}</svg></div>'
    )


def png(image: np.ndarray) -> str:
    """A uint8 picture [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as a data URI."""
    from PIL import Image

    image = np.asarray(image, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes_and_lines(flat, lines, marks, xlabel, ylabel) -> str:
    (x0, y0), (x1, y1) = flat.min(1), flat.max(1)
    log = y0 > 0 and y1 / y0 > 50
    y0, y1 = (math.log10(y0), math.log10(y1)) if log else (y0, y1)
    x0, x1 = (x0, x1) if x1 > x0 else (x0 - 0.5, x1 + 0.5)
    room = 0.05 * (y1 - y0) or max(abs(y1), 1e-12) * 0.05
    y0, y1 = y0 - room, y1 + room

    xticks = _ticks(x0, x1, 5)
    if (flat[0] % 1 == 0).all():  # there is no step 40.6
        xticks = [tick for tick in xticks if abs(tick - round(tick)) < 1e-9]
    yticks = _log_ticks(y0, y1) if log else _ticks(y0, y1, 5)
    left = 34 + 7 * max((len(_short(tick)) for tick in yticks), default=0)

    def place(x, y):
        y = np.log10(np.maximum(y, 1e-300)) if log else np.asarray(y)
        across = left + (np.asarray(x) - x0) / (x1 - x0) * (_WIDTH - left - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in xticks:
        x = place(tick, 1.0)[0]
        parts.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 17}">{_short(tick)}</text>')
    for tick in yticks:
        y = place(x0, tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{_short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{left} {_TOP}V{bottom}H{right}"/>')
    middle = (left + right) / 2, (_TOP + bottom) / 2
    ylabel += " (log)" if log and ylabel else ""
    parts.append(
        f'<text class="mid" x="{middle[0]}" y="{_HEIGHT - 6}">{html.escape(xlabel)}</text>'
    )
    parts.append(
        f'<text class="mid" transform="translate(13 {middle[1]}) rotate(-90)">{html.escape(ylabel)}</text>'
    )
    for i, (name, line) in enumerate(lines.items()):
        across, down = place(*line)
        parts.append(_line(across, down, f"s{_colour(name, i)}"))
    for i, (name, (x, y)) in enumerate(marks.items(), len(lines)):
        if math.isfinite(y):
            at, level = place(x, y)
            style, tip = f"s{_colour(name, i)}", html.escape(f"{name}: {_short(y)}")
            parts.append(f'<path class="level {style}" d="M{left} {level:.1f}H{right}"/>')
            parts.append(
                f'<circle class="dot {style}" cx="{at:.1f}" cy="{level:.1f}" r="4.5">'
                f"<title>{tip}</title></circle>"
            )
    return "".join(parts)


def _line(xs: np.ndarray, ys: np.ndarray, style: str) -> str:
    """One path; few points are shown as dots too, a point between two gaps always."""
    path, pen, dots = [], "M", []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if not math.isfinite(y):
            pen = "M"
            continue
        alone = pen == "M" and (i + 1 == len(xs) or not math.isfinite(ys[i + 1]))
        path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
        if alone or len(xs) <= 30:
            dots.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    return f'<path class="line {style}" d="{"".join(path)}"/>' + "".join(dots)


def _finite(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """A line of floats, infinite values as NaN, thinned to the extremes of each stretch."""
    xs, ys = (np.asarray(values, np.float64) for values in points)
    ys = np.where(np.isfinite(ys), ys, np.nan)
    if len(xs) <= _MOST_POINTS:
        return xs, ys
    keep = {0, len(xs) - 1}
    for stretch in np.array_split(np.arange(len(xs)), _MOST_POINTS // 2):
        if np.isfinite(ys[stretch]).any():
            keep |= {
                int(stretch[np.nanargmin(ys[stretch])]),
                int(stretch[np.nanargmax(ys[stretch])]),
            }
        else:
            keep.add(int(stretch[0]))
    chosen = sorted(keep)
    return xs[chosen], ys[chosen]


def _last(lines, marks, name: str) -> str:
    if name in marks:
        return _short(marks[name][1])
    return _short(lines[name][1][-1]) if len(lines[name][1]) else ""


def _colour(name: str, i: int) -> int:
    if name.startswith("test_"):  # stands beside the three, whichever of them are there
        return len(_COLOURS) + i % (8 - len(_COLOURS))
    return _COLOURS.get(name, i % 8)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high], about so many."""
    raw = (high - low) / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    spacing = max(1, len(decades) // 6)
    ticks = [m * 10.0**d for d in decades[::spacing] for m in factors]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _short(value: float) -> str:
    """'20k', '0.05', '1e-05': as few characters as four digits need."""
    if not math.isfinite(value):
        return "not finite"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def _shorten(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _numbered(matrix, share, names, margin, above, cell) -> str:
    parts = []
    for i, j in np.ndindex(matrix.shape):
        x, y = margin + j * cell, above + i * cell
        tip = html.escape(f"{names[i]}, taken for {names[j]}: {matrix[i, j]}")
        parts.append(
            f'<rect class="{"hit" if i == j else "miss"}" x="{x}" y="{y}" width="{cell}" '
            f'height="{cell}" fill-opacity="{share[i, j]:.2f}"><title>{tip}</title></rect>'
        )
        if matrix[i, j]:
            strong = " strong" if share[i, j] > 0.6 else ""
            parts.append(
                f'<text class="mid{strong}" x="{x + cell / 2}" y="{y + cell / 2 + 4}">'
                f"{_short(int(matrix[i, j]))}</text>"
            )
    return "".join(parts)


def _pixels(matrix, share, names, margin, above, cell) -> str:
    """A transparent picture of one pixel a cell: hits and misses in the page's two colours."""
    rgba = np.empty((*matrix.shape, 4), np.uint8)
    rgba[..., :3] = (222, 92, 44)
    rgba[np.arange(len(names)), np.arange(len(names)), :3] = (42, 120, 214)
    rgba[..., 3] = np.round(255 * share)
    side = cell * len(names)
    return (
        f'<rect class="frame" x="{margin}" y="{above}" width="{side}" height="{side}"/>'
        f'<image href="{png(rgba)}" x="{margin}" y="{above}" width="{side}" height="{side}"/>'
    )
