# SPDX-License-Identifier: Apache-2.0
"""The report's page: what one looks for comes first, and nothing in it breaks the page."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from slipstream.launcher.observe import pieces, plots
from slipstream.launcher.observe.html_page import page
from slipstream.launcher.observe.metrics import Metrics


def report(codes=(0, 0), taken=True, lines=("throughput: 100 images/s", "throughput: 120 images/s"), **more):
    metrics = Metrics()
    for index in range(len(codes)):
        for line in lines:
            metrics.listen(index, line)
    numbers = range(len(codes))
    planned = {"nodes": [0], "threads": 1, "memory_policy": "none", "memory_nodes": [], "argv": ["python", "a <b>.py"]}
    env = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"}
    return {
        "plan": {
            "instances": [{"index": n, "cpus": [n], **planned, "env": env, "reasons": {}} for n in numbers],
            "left_out": [],
            "warnings": [],
        },
        "instances": [{"index": n, "exit_code": codes[n], "seconds": 4.905 + n, "pid": n} for n in numbers],
        "processes": [],
        "metrics": metrics.as_dicts(),
        "checks": [{"what": f"instance {n}: threads", "taken": taken, "reason": "seen", "figures": {}} for n in numbers],
        "usage": {n: {"seconds": [1.0, 2.0], "cpu_percent": [90.0, 99.0], "resident_mb": [10.0, 11.0]} for n in numbers},
        **more,
    }


class Balanced(HTMLParser):
    """Fails at a tag that is closed out of turn."""

    EMPTY = frozenset({"meta", "wbr"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tiles(text):
    return re.findall(r"<div class=tile><b( class=bad)?>([^<]*)</b><span class=soft>([^<]*)</span>", text)


@pytest.mark.parametrize("codes", [(0, 0), (3, 0), (0,)])
def test_the_page_is_well_formed(codes):
    text = page(report(codes))
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    for drawing in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(drawing)
    assert "a <b>.py" not in text and "a &lt;b&gt;.py" in text


def test_what_one_looks_for_comes_first():
    assert tiles(page(report())) == [
        ("", "2 instances", "ended well"),
        ("", "5.9 s", "until the last ended"),
        ("", "240 images/s", "throughput, over all"),
        ("", "as planned", "2 checks"),
    ]


def test_failures_are_marked():
    text = page(report(codes=(0, 3), taken=False))
    assert [tile for tile in tiles(text) if tile[0]] == [
        (" class=bad", "1 of 2", "failed"),
        (" class=bad", "2 of 2", "checks not as planned"),
    ]
    assert "<td class=bad>3</td>" in text and text.count("<td class=bad>NO</td>") == 2


def test_lines_of_several_instances_have_a_key():
    assert page(report()).count("</i>instance 1</span>") == 3  # the figure, CPU use, memory
    assert "</i>instance" not in page(report(codes=(0,)))


def test_a_rate_without_a_name_is_not_named_twice():
    text = page(report(lines=("5 it/s", "6 it/s")))
    assert "<figcaption>it/s, over time</figcaption>" in text


def process(count=70, **more):
    """A process with ``count`` equal layers, one that was refused, and attention."""
    names = [f"Net.layer.{number}.<dense>: packed linear" for number in range(count)]
    decisions = [
        {"what": name, "taken": True, "reason": "packed once", "figures": {"speedup_x": 2.0 + n, "error_relative": 1e-3}}
        for n, name in enumerate(names)
    ]
    decisions += [
        {"what": "Net.head: packed linear", "taken": False, "reason": "too small", "figures": {}},
        {"what": "attention: 4 heads of 8, 2 × 2", "taken": True, "reason": "in bfloat16", "figures": {"speedup_x": 1.5}},
        {"what": "native kernels", "taken": True, "reason": "avx2", "figures": {}},
    ]
    held = {"layer": "Linear", "tier": "leaf", "calls": 3, "seconds": 0.5, "packed_mb": 1.0, "weights_mb": 2.0}
    accounts = {name: held for name in names}
    accounts["Net.head: packed linear"] = {**held, "calls": 0, "seconds": None, "packed_mb": 0.0}
    accounts["attention: 4 heads of 8, 2 × 2"] = {**held, "tier": "function", "layer": "scaled_dot_product_attention"}
    return {
        "pid": 7, "argv": ["a <b>.py"], "instance": 0, "decisions": decisions, "accounts": accounts, "seconds": 100.0,
        "summary": {"taken": 72, "not_taken": 1, "setup_s": 0.5, "packed_mb": 70.0}, "peak_mb": 400.0,
        "models": {"Net": {"layers": {"Linear": 71, "LayerNorm": 2}, "parameters_mb": 140.0}}, **more,
    }  # fmt: skip


def test_equal_layers_are_one_row_that_unfolds():
    text = page(report(processes=[process()]))
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert text.count("<details>") == 1 and text.count("class='row member'") == 70
    assert "× 70</span>" in text and "36.50×" in text  # the median over them
    assert "71 of 72" in text and "too small" in text
    assert "run by torch, or as part of a piece above: LayerNorm × 2" in text
    assert "<dense>" not in text and "<b>.py" not in text.replace("a &lt;b&gt;.py", "")
    assert "Decisions of process 7" in text and "avx2" in text
    for drawing in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(drawing)


def test_where_time_and_memory_went():
    text = page(report(processes=[process()]))
    assert "Time since torch was imported" in text and ">35 s</text>" in text  # seventy layers of half a second
    assert ">64 s</text>" in text  # everything else
    assert ">140 MB</text>" in text and ">210 MB</text>" in text and ">400 MB</text>" in text


def test_rows_in_order_of_time_and_refusals_last():
    groups = pieces.groups(pieces.rows(process()))
    assert [group.name for group in groups] == ["Net.layer.*.<dense>", "attention", "Net.head"]
    assert groups[0].calls == 210 and groups[0].seconds == 35 and groups[0].packed_mb == 70


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Net.layer.3.q", "Net.layer.*.q"),
        ("Net#2.0", "Net#*.*"),
        ("Linear#12", "Linear#*"),
        ("Net.conv1.bn2d", "Net.conv1.bn2d"),
    ],
)
def test_paths_that_differ_in_numbers_only_are_one(name, expected):
    assert pieces.pattern(name) == expected


def test_a_comparison_is_part_of_the_page():
    found = {
        "rounds": 2,
        "exit_codes": [[0, 0], [0, 0]],
        "rows": [{"name": "seconds", "plain": 2.0, "codeless": 1.0, "ratio": 0.5, "range": [0.4, 0.6]}],
        "stdout": {"words": "DIFFERENT in 1 line", "diff": ["-<a>", "+<b>"]},
        "different": True,
    }
    text = page(report(comparison=found))
    assert "0.50 (0.40–0.60)" in text and "DIFFERENT in 1 line" in text and "-&lt;a&gt;" in text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 108.7), (0, 9.98), (0, 3e6), (-0.5, 0), (0, 0), (-3, 7), (0, 1e-9), (0, 1e300), (0, 100), (0, 1)]
)
def test_marks_of_an_axis_are_few_and_hold_everything(low, high):
    marks = plots.ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low and marks[-1] > high
    assert 0 in marks


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (108.73, "108.7"), (9999, "9999"), (25000, "25 k"), (2.5e6, "2.5 M")])
def test_numbers_that_fit_beside_an_axis(value, text):
    assert plots.short(value) == text
