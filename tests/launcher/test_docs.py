# SPDX-License-Identifier: Apache-2.0
"""docs/launcher.md names every flag and every old spelling, with the values that there are."""

import pathlib

import pytest
from machines import T1, cpus, plan, sets

from slipstream.errors import PlanError
from slipstream.launcher.flags import BY_NAME
from slipstream.launcher.legacy import LEGACY

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "launcher.md").read_text()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_flag_is_documented(name):
    flag = BY_NAME[name]
    assert f"`--{name}" in PAGE or f"--{name} " in PAGE
    if flag.choices:
        assert f"--{name} " + "\\|".join(flag.choices) in PAGE


@pytest.mark.parametrize("name", sorted(LEGACY))
def test_old_spelling_is_documented(name):
    assert f"--{name.replace('-', '_')}" in PAGE


def examples():
    """Rows (flags, instances) of the table of worked examples."""
    rows = PAGE.partition("| flags | instances |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    for row in rows:
        _, flags, instances, _ = row.split("|")
        yield flags.strip(" `"), instances.strip()


@pytest.mark.parametrize(("flags", "instances"), list(examples()))
def test_worked_example_holds(flags, instances):
    flags = flags.replace("(none)", "")
    if instances.startswith("refused: "):
        with pytest.raises(PlanError) as caught:
            plan(T1, flags)
        assert instances == f"refused: `{caught.value}`"
        return
    text = instances.partition(": ")[0].partition(" (")[0]
    separated = text.replace(" and ", " | ").replace(", ", " | ")
    assert cpus(plan(T1, flags)) == sets(separated)
