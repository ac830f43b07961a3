# SPDX-License-Identifier: Apache-2.0
"""README and the other pages name commands, flags and files that are there."""

import pathlib
import re
import shlex

import pytest

from benchmarks import cli
from slipstream.launcher.flags import BY_NAME
from slipstream.launcher.legacy import LEGACY

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "benchmarks.md"]
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def command_lines(start):
    """(page, the command) for each line of a code block that begins with ``start``; two spaces end a command."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith(start):
                yield page.name, re.split(r"\s{2,}", line.removeprefix(start).strip())[0]


@pytest.mark.parametrize(("page", "command"), list(command_lines("ipexrun ")))
def test_ipexrun_flags_exist(page, command):
    known = {name.replace("-", "_") for name in (*BY_NAME, *LEGACY)}
    ours, program, _ = re.split(r"(script\.py|\./server|-m package\.module)", command, maxsplit=1)
    flags = [word[2:] for word in ours.split() if word.startswith("--")]
    assert program
    assert {flag.replace("-", "_") for flag in flags} <= known


@pytest.mark.parametrize(("page", "command"), list(command_lines("python -m benchmarks ")))
def test_benchmark_commands_parse(page, command):
    re_spaced = re.sub(r"(?<=\S) +", " ", command)
    assert cli.parser().parse_args(shlex.split(re_spaced)).act in command


@pytest.mark.parametrize(("page", "command"), list(command_lines("make ")))
def test_make_targets_exist(page, command):
    target = next(word for word in command.split() if "=" not in word)
    assert target in MAKE_TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_folders_named_exist(page):
    named = re.findall(r"`((?:slipstream|csrc|tests|benchmarks|examples|docs)/[\w/.]*)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
