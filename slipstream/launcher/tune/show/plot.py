# SPDX-License-Identifier: Apache-2.0
"""A verdict as one SVG picture that needs nothing else: a row for each configuration, or two goals against each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from slipstream.launcher.tune.verdict import Standing, Verdict

WIDTH, ROW, TOP, LABELS, RIGHT = 960, 24, 64, 430, 110
SIDE, MARGIN = 420, 60
MOST_ROWS = 40
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1c2430; } .soft { fill: #66707d; } .title { font-size: 15px; font-weight: 600; }
.rule { stroke: #d7dde5; } .whisker { stroke: #7a8794; stroke-width: 2; } .dot { fill: #2f6fb7; } .best { fill: #d9822b; }
.weak { fill: #b9c4d0; } .no { fill: #c0392b; } .paper { fill: #ffffff; }
"""


def plot(verdict: Verdict) -> str:
    """The whole file."""
    several = verdict.resolved is not None and len(verdict.resolved.goals) > 1
    rows = _rows(verdict, TOP)
    height = TOP + ROW * len(_shown(verdict)) + 40
    content = rows
    if several:
        content += _scatter(verdict, height)
        height += SIDE + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">'
        f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>{content}</svg>\n'
    )


def _shown(verdict: Verdict) -> Sequence[Standing]:
    return verdict.standings[:MOST_ROWS]


def _rows(verdict: Verdict, top: float) -> str:
    """Median, least and greatest of the first goal; failures with their reason."""
    goal = str(verdict.resolved.goals[0]) if verdict.resolved else ""
    shown = [one for one in _shown(verdict) if not one.failed]
    low, high = _range([value for one in shown for value in (one.low, one.high)], from_zero=True)
    text = _text(16, 26, f"{goal}: median, least and greatest of each configuration's runs", "title")
    text += _text(LABELS, 50, f"{low:.4g}", "soft") + _text(WIDTH - RIGHT, 50, f"{high:.4g}", "soft", "end")
    for place, one in enumerate(_shown(verdict)):
        y = top + ROW * (place + 0.5)
        text += f'<line class="rule" x1="16" x2="{WIDTH - 16}" y1="{y + ROW / 2:.1f}" y2="{y + ROW / 2:.1f}"/>'
        text += _text(16, y + 4, _shortened(str(one.configuration)))
        if one.failed:
            text += _text(LABELS, y + 4, _shortened(f"failed: {one.note}", 76), "no")
            continue
        left, middle, right = (_scale(value, low, high, LABELS, WIDTH - RIGHT) for value in (one.low, one.values[0], one.high))
        text += (
            f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="{_class(one, verdict)}" cx="{middle:.1f}" cy="{y:.1f}" r="5"><title>{_title(one)}</title></circle>'
        )
        text += _text(WIDTH - 16, y + 4, f"{one.values[0]:.5g}", anchor="end")
    return text


def _scatter(verdict: Verdict, top: float) -> str:
    """The first two goals against each other: the front is what no other configuration beats in both."""
    assert verdict.resolved is not None
    names = [f"{goal} ({'higher' if goal.higher else 'lower'} is better)" for goal in verdict.resolved.goals[:2]]
    shown = [one for one in verdict.standings if not one.failed]
    xs = _range([one.values[0] for one in shown])
    ys = _range([one.values[1] for one in shown])
    left, right, bottom = MARGIN + 40, MARGIN + 40 + 1.6 * SIDE, top + MARGIN + SIDE
    text = _text(left, top + 30, f"{names[1]} over {names[0]}", "title")
    text += f'<line class="rule" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    text += f'<line class="rule" x1="{left}" x2="{left}" y1="{bottom - SIDE}" y2="{bottom}"/>'
    for value, anchor, x in ((xs[0], "start", left), (xs[1], "end", right)):
        text += _text(x, bottom + 18, f"{value:.4g}", "soft", anchor)
    for value, y in ((ys[0], bottom), (ys[1], bottom - SIDE + 8)):
        text += _text(left - 8, y, f"{value:.4g}", "soft", "end")
    for one in reversed(shown):
        x, y = _scale(one.values[0], *xs, left + 8, right - 8), _scale(one.values[1], *ys, bottom - 8, bottom - SIDE + 8)
        text += (
            f'<circle class="{_class(one, verdict)}" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{_title(one)}</title></circle>'
        )
        if "front" in one.note or one == verdict.winner:
            text += _text(x + 9, y + 4, _shortened(str(one.configuration), 60))
    return text


def _class(one: Standing, verdict: Verdict) -> str:
    """The colour: the winner, those that ran as long as it, the others."""
    if one == verdict.winner:
        return "best"
    return "dot" if verdict.winner is not None and one.stage == verdict.winner.stage and one.keeps_limits else "weak"


def _title(one: Standing) -> str:
    values = ", ".join(f"{value:.6g}" for value in one.values)
    return escape(f"{one.configuration}: {values}; {one.runs} runs, spread {one.spread_percent:.1f} %; {one.note}")


def _range(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Ends of an axis; from zero, so that lengths are in proportion, unless that would hide all differences."""
    low, high = min(values), max(values)
    if from_zero and 0 < low < 0.7 * high:
        low = 0.0
    return (low, high) if low < high else (low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0))


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * (value - low) / (high - low)


def _shortened(text: str, most: int = 62) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind} text-anchor="{anchor}">{escape(text)}</text>'
