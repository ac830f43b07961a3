# SPDX-License-Identifier: Apache-2.0
"""The zoo's speed-ups as an SVG: a group of bars a model, a bar a contestant, a whisker over its rounds."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from slipstream.errors import MissingDependency

# float32 pale, bfloat16 strong, one hue a contestant; ours last, so that it stands at the end of each group
COLOURS = {
    "eager": ("#c8c8c8", "#8c8c8c"),
    "autocast": ("#d9d9c0", "#a3a374"),
    "compile": ("#c6dbef", "#4292c6"),
    "ipex": ("#dadaeb", "#756bb1"),
    "openvino": ("#c7e9c0", "#41ab5d"),
    "ours": ("#fdbe85", "#d94801"),
}


def colour(contestant: str) -> str:
    name, _, dtype = contestant.partition("-")
    return COLOURS[name][dtype == "bfloat16"]


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    pyplot = _pyplot()
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    height = 0.8 / len(names)
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + len(models) * (0.35 + 0.16 * len(names))))
    for place, name in enumerate(names):
        shown = [row for row in rows if row["contestant"] == name and "speedup" in row]
        values = [row["speedup"] for row in shown]
        whiskers = [
            [row["speedup"] - row["speedup_low"] for row in shown],
            [row["speedup_high"] - row["speedup"] for row in shown],
        ]
        at = [models.index(row["model"]) - 0.4 + height * (place + 0.5) for row in shown]
        thin = {"elinewidth": 0.7, "ecolor": "#444444"}
        axes.barh(at, values, height, label=name, color=colour(name), xerr=whiskers, error_kw=thin)
    axes.set_yticks(range(len(models)), models)
    axes.invert_yaxis()
    axes.axvline(1, color="#444444", linewidth=0.7)
    axes.set_xlabel("times as fast as eager float32 (median of the rounds; whisker: lowest and highest round)")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12 / len(models) - 0.1), ncols=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def draw_instances(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Throughput of each layout, a group of bars a dtype; whiskers are quartiles over the rounds."""
    pyplot = _pyplot()
    layouts = list(dict.fromkeys((row["instances"], row["cores"]) for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.5 * len(rows)))
    height = 0.8 / len(dtypes)
    for place, dtype in enumerate(dtypes):
        shown = {(row["instances"], row["cores"]): row for row in rows if row["dtype"] == dtype}
        at = [index - 0.4 + height * (place + 0.5) for index in range(len(layouts))]
        values = [shown[layout]["throughput"] for layout in layouts]
        whiskers = [
            [shown[layout]["throughput"] - shown[layout]["throughput_low"] for layout in layouts],
            [shown[layout]["throughput_high"] - shown[layout]["throughput"] for layout in layouts],
        ]
        bars = axes.barh(at, values, height * 0.9, label=dtype, color=COLOURS["ours"][dtype == "bfloat16"], xerr=whiskers)
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=6, fontsize="small")
    axes.set_yticks(range(len(layouts)), [f"{count} × {cores} core{'s' * (cores > 1)}" for count, cores in layouts])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("BERT-base sequences of 128 tokens a second, summed over the instances")
    axes.legend(fontsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency.of("matplotlib", "--picture", "bench") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "slipstream"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot
