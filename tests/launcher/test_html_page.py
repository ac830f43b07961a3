# SPDX-License-Identifier: Apache-2.0
"""The report's page: what one looks for comes first, and nothing in it breaks the page."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from slipstream.launcher.observe import plots
from slipstream.launcher.observe.html_page import page
from slipstream.launcher.observe.metrics import Metrics


def report(codes=(0, 0), taken=True, lines=("throughput: 100 images/s", "throughput: 120 images/s"), **more):
    metrics = Metrics()
    for index in range(len(codes)):
        for line in lines:
            metrics.listen(index, line)
    numbers = range(len(codes))
    planned = {"nodes": [0], "threads": 1, "memory_policy": "none", "memory_nodes": [], "argv": ["python", "a <b>.py"]}
    env = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=17179869184"}
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

    EMPTY = frozenset({"meta"})

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
