# SPDX-License-Identifier: Apache-2.0
"""Lists of CPUs as the kernel writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.runtime.cpu_list import format_cpu_list, format_mask, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", (0, 1, 2, 3, 8)), (" 1, 0 ", (0, 1)), ("", ()), ("\n", ()), ("5-5", (5,)), ("3,1-4", (1, 2, 3, 4))],
)
def test_parse(text, numbers):
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "1,,2", ",", "0x3", "1.5", "0-99999999", "٣", "1-2-3"])
def test_what_is_no_list_is_refused_by_name(text):
    with pytest.raises(UsageError, match="--cores-list"):
        parse_cpu_list(text, argument="--cores-list")


@given(st.sets(st.integers(0, 500)))
def test_there_and_back(numbers):
    assert set(parse_cpu_list(format_cpu_list(numbers))) == numbers


def test_shortest_form():
    assert format_cpu_list([8, 3, 2, 1, 0, 1]) == "0-3,8"


def test_mask():
    assert format_mask(range(4, 28)) == "0xffffff0"
