"""Tables in HTML, for notebooks and reports: plain, escaped, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from damo_torchrec.printable import printable


def html_table(rows: Iterable[Sequence[object]], heads: Sequence[str] = (), caption: str = "") -> str:
    """A table of `rows`, the first of each of which names it. Numbers get separators of thousands."""
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{shown_html(caption)}</caption>")
    if heads:
        parts.append(f"<thead><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr></thead>")
    parts.append("<tbody>")
    for name, *values in rows:
        cells = "".join(f"<td>{shown_html(_text(value))}</td>" for value in values)
        parts.append(f'<tr><th scope="row">{shown_html(_text(name))}</th>{cells}</tr>')
    parts.append("</tbody></table>")
    return "".join(parts)


def shown_html(text: str) -> str:
    """A text as a page may have it: nothing of it is markup, and what is no sign, as `printable` has it."""
    return escape(printable(text))


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
