"""Tables in HTML, for notebooks and reports: plain, escaped, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(rows: Iterable[Sequence[object]], heads: Sequence[str] = (), caption: str = "") -> str:
    """A table of `rows`, the first of each of which names it. Numbers get separators of thousands."""
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    if heads:
        parts.append(f"<thead><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr></thead>")
    parts.append("<tbody>")
    for name, *values in rows:
        cells = "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        parts.append(f'<tr><th scope="row">{escape(_text(name))}</th>{cells}</tr>')
    parts.append("</tbody></table>")
    return "".join(parts)


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
