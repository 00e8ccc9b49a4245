"""The page of a report: self-contained, without scripts, for light and dark screens of any width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from damo_torchrec.advice import Advice, budget_text, percent
from damo_torchrec.html_table import html_table, shown_html
from damo_torchrec.inspection.summary import Spread
from damo_torchrec.report.facts import Facts
from damo_torchrec.report.plots import line_plot

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #fff; --faint: #6a717b; --rule: #d9dde2; --line: #1a5fb4;
  --mark: #b3420f; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --faint: #9aa2ad; --rule: #353b43;
  --line: #78aeed; --mark: #ff9e64; --card: #1e2228; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.faint { color: var(--faint); }
.warning { border-left: 4px solid var(--mark); padding-left: .75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem; }
.card b { display: block; font-size: 1.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child { text-align: left; }
svg { width: 100%; max-width: 44rem; height: auto; }
svg text { fill: var(--faint); font-size: 14px; }
@media (max-width: 40rem) { svg text { font-size: 20px; } }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke: var(--line); stroke-width: 2; }
svg .dot { fill: var(--line); }
svg .band { fill: var(--line); opacity: .2; }
svg line.mark { stroke: var(--mark); stroke-dasharray: 4 3; }
svg text.mark { fill: var(--mark); }
"""

_NO_ADVICE = (
    "There is no profile of the cache that says what other budgets would come to. Train with "
    "<code>EmbeddingStore(..., options=StoreOptions(profile_cache=True))</code>, until each id that is used often has "
    "come some times, then close the store or make a checkpoint."
)


def page(facts: Facts) -> str:
    """The document."""
    title = f"Store {facts.path.name}"
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{shown_html(title)}</title><style>{_STYLE}</style></head>"
    )
    return f"{head}<body><main>{''.join(_body(facts))}</main></body></html>\n"


def _body(facts: Facts) -> Iterator[str]:
    rows = sum(table.summary.rows for table in facts.tables.values())
    size = sum(table.bytes_of_rows for table in facts.tables.values())
    yield f'<h1>{shown_html(facts.path.name)}</h1><p class="faint">{shown_html(str(facts.path))}</p>'
    newest = facts.checkpoints[-1].made if facts.checkpoints else "–"
    yield f'<p class="faint">Step {facts.step:,}; its newest checkpoint was made {newest}.</p>'
    if facts.ahead:
        yield f'<p class="warning">The store {shown_html(facts.ahead)}: this is its newest checkpoint.</p>'
    cards = {
        "rows": f"{rows:,}",
        "in rows, without keys": _size(size),
        "table" if len(facts.tables) == 1 else "tables": f"{len(facts.tables):,}",
    }
    if facts.advice is not None:
        own = facts.advice.own
        cards |= {
            f"of ids in memory with {budget_text(own.memory_budget)}": percent(own.hit_rate),
            "rows read a step": f"{own.rows_read:,.0f}",
            "would be enough": budget_text(facts.advice.best.memory_budget),
        }
    shown = (f'<div class="card"><b>{escape(value)}</b>{escape(what)}</div>' for what, value in cards.items())
    yield f'<div class="cards">{"".join(shown)}</div>'
    yield "<h2>Memory budget</h2>"
    if facts.advice is not None:
        yield from _memory(facts.advice)
    else:
        yield f"<p>{shown_html(facts.no_profile) if facts.no_profile else _NO_ADVICE}</p>"
    yield "<h2>Tables</h2>"
    yield from _tables(facts)
    yield "<h2>Checkpoints</h2>"
    yield from _checkpoints(facts)


def _memory(advice: Advice) -> Iterator[str]:
    yield f"<p>{escape(str(advice))}</p>"
    points = advice.points
    if len(points) > 1:
        labels = [(math.log2(p.memory_budget), budget_text(p.memory_budget)) for p in points]
        yield line_plot(
            [(math.log2(p.memory_budget), p.hit_rate) for p in points],
            x_labels=labels[:: (len(points) + 5) // 6],
            y_labels=[(share / 4, f"{25 * share} %") for share in range(5)],
            bands=[(max(p.hit_rate - 2 * p.error, 0), min(p.hit_rate + 2 * p.error, 1)) for p in points],
            title="Share of the ids whose row is in memory, by memory budget",
            marked=(math.log2(advice.own.memory_budget), "this store's budget"),
        )
    rows = [
        (
            budget_text(p.memory_budget),
            percent(p.hit_rate),
            f"± {percent(p.error)}",
            round(p.rows_read),
            None if p.evaluation_hit_rate is None else percent(p.evaluation_hit_rate),
        )
        for p in points
    ]
    yield _wide(html_table(rows, ("budget", "in memory", "error", "rows read a step", "in memory, evaluation")))


def _tables(facts: Facts) -> Iterator[str]:
    heads = ("table", "rows", "dim", "weights", "optimizer", "updates", "bytes", "zero", "not finite")
    yield _wide(
        html_table(
            (
                (
                    name,
                    t.summary.rows,
                    t.dim,
                    t.row_dtype,
                    t.optimizer,
                    t.updates,
                    _size(t.bytes_of_rows),
                    t.summary.zero_rows,
                    t.summary.nonfinite_rows,
                )
                for name, t in facts.tables.items()
            ),
            heads,
        )
    )
    yield "<h2>Norms of rows, and how often each was updated</h2>"
    spreads = ((name, *_spread(t.summary.norms), *_spread(t.summary.updates)) for name, t in facts.tables.items())
    yield _wide(html_table(spreads, ("table", "norm, least", "mean", "largest", "updates, least", "mean", "largest")))
    lives = [(name, t) for name, t in facts.tables.items() if t.life is not None]
    if not lives:
        return
    yield "<h2>Rows that came and went</h2>"
    rows = []
    for name, table in lives:
        assert table.life is not None
        expired = sum(table.life.expired.values())
        rows.append((name, table.rule, table.life.created, expired, table.life.cut, table.life.sighted))
    yield _wide(html_table(rows, ("table", "rule", "made", "expired", "beyond max_rows", "ids without a row yet")))


def _checkpoints(facts: Facts) -> Iterator[str]:
    steps = {checkpoint.step: checkpoint.rows for checkpoint in facts.checkpoints}
    if len(steps) > 1:
        most = max(*steps.values(), 1)
        yield line_plot(
            sorted(steps.items()),
            x_labels=[(step, f"step {step:,}") for step in (min(steps), max(steps))],
            y_labels=[(0, "0"), (most, f"{most:,}")],
            title="Rows by step",
        )
    rows = ((c.name, c.made, c.step, c.rows, _size(c.bytes_of_rows), c.dense_part) for c in reversed(facts.checkpoints))
    yield _wide(html_table(rows, ("checkpoint", "made", "step", "rows", "bytes of rows", "dense part")))


def _spread(spread: Spread) -> tuple[float | None, float | None, float | None]:
    return spread.least, spread.mean, spread.largest


def _wide(table: str) -> str:
    return f'<div class="wide">{table}</div>'


def _size(size: int) -> str:
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size} bytes" if power == 0 else f"{size / 1024**power:.1f} {' KMGT'[power]}iB"
