"""Lines in SVG, drawn by the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 104, 16, 16, 44  # of labels as large as they are on a phone


def line_plot(
    points: Sequence[tuple[float, float]],
    *,
    x_labels: Sequence[tuple[float, str]],
    y_labels: Sequence[tuple[float, str]],
    title: str,
    marked: tuple[float, str] | None = None,
    bands: Sequence[tuple[float, float]] = (),
) -> str:
    """A line through `points`, of ascending x.

    Args:
        points: x and y.
        x_labels: where the x axis says what.
        y_labels: where the y axis says what; the first and the last are its ends.
        title: what it shows, for who cannot see it.
        marked: an x to mark, and what with.
        bands: the least and the largest y for each point.
    """
    x0, x1 = points[0][0], points[-1][0]
    y0, y1 = y_labels[0][0], y_labels[-1][0]

    def at(x: float, y: float) -> str:
        left = _LEFT + (x - x0) / ((x1 - x0) or 1) * (_WIDTH - _LEFT - _RIGHT)
        top = _HEIGHT - _BOTTOM - (y - y0) / ((y1 - y0) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{left:.1f},{top:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escape(title)}</title>']
    for y, text in y_labels:
        (left, top), right = at(x0, y).split(","), _WIDTH - _RIGHT
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{top}" y2="{top}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(top) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for x, text in x_labels:
        left = at(x, y0).split(",")[0]
        anchor = "end" if float(left) > _WIDTH - 40 else "middle"
        parts.append(f'<text x="{left}" y="{_HEIGHT - 12}" text-anchor="{anchor}">{escape(text)}</text>')
    if bands:
        upper = [at(x, high) for (x, _), (_, high) in zip(points, bands, strict=True)]
        lower = [at(x, low) for (x, _), (low, _) in zip(points, bands, strict=True)]
        parts.append(f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(at(x, y) for x, y in points)}"/>')
    parts.extend(f'<circle class="dot" r="3" cx="{p[0]}" cy="{p[1]}"/>' for p in (at(*p).split(",") for p in points))
    if marked is not None:
        left = at(marked[0], y0).split(",")[0]
        side, shift = ("end", -6) if float(left) > _WIDTH / 2 else ("start", 6)
        parts.append(f'<line class="mark" x1="{left}" x2="{left}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="mark" x="{float(left) + shift:.1f}" y="{_HEIGHT - _BOTTOM - 8}" text-anchor="{side}">'
            f"{escape(marked[1])}</text>"
        )
    return "".join([*parts, "</svg>"])
