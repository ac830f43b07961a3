# SPDX-License-Identifier: Apache-2.0
"""Horizontal bars of parts that add up, as inline SVG: where time goes, what memory holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from slipstream.launcher.observe.plots import COLOURS

WIDTH, LABEL, VALUE, ROW, BAR = 440, 152, 76, 27, 15
REST = "#9aa5b1"
"""The colour of what is nobody's in particular."""

Part = tuple[str, float]
"""What it is, and how much."""


def share_bars(title: str, bars: Mapping[str, Sequence[Part]], show: Callable[[float], str], *, rest: str = "") -> str:
    """One bar a label, on one scale, each of one or more parts; the sum stands at its end. ``rest`` is drawn in grey."""
    longest = max((sum(value for _, value in parts) for parts in bars.values()), default=0.0) or 1.0
    names = dict.fromkeys(name for parts in bars.values() for name, _ in parts)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(name for name in names if name != rest)}
    text = ""
    for place, (label, parts) in enumerate(bars.items()):
        middle = place * ROW + ROW / 2
        x = float(LABEL)
        text += f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(_short(label))}</text>'
        for name, value in parts:
            width = (WIDTH - LABEL - VALUE) * value / longest
            text += (
                f'<rect x="{x:.1f}" y="{middle - BAR / 2}" width="{max(width, 0.5):.1f}" height="{BAR}" rx="2" '
                f'fill="{colours.get(name, REST)}"><title>{escape(name)}: {escape(show(value))}</title></rect>'
            )
            x += width
        text += f'<text x="{x + 6:.1f}" y="{middle + 4}">{escape(show(sum(value for _, value in parts)))}</text>'
    several = any(len(parts) > 1 for parts in bars.values())
    key = "".join(
        f'<span><i style="background:{colours.get(name, REST)}"></i>{escape(name)}</span>' for name in names if several
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {len(bars) * ROW}" role="img" class="shares">{text}</svg>'
        f"<div class=key>{key}</div></figure>"
    )


def _short(label: str) -> str:
    return label if len(label) <= 21 else label[:20] + "…"
