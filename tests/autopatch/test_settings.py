# SPDX-License-Identifier: Apache-2.0
"""Settings survive their way as text, and say no to what they do not know."""

import pytest

from slipstream.autopatch.settings import Settings
from slipstream.errors import UsageError


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings("bfloat16", False, True, "high", False, 1.5, True)],
)
def test_there_and_back(settings):
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"dtype": "int4"}, "dtype int4"),
        ({"float32_matmul_precision": "low"}, "float32_matmul_precision low"),
        ({"budget_s": -1.0}, "budget_s -1.0"),
        ({"budget_s": float("nan")}, "budget_s nan"),
    ],
)
def test_values_that_are_not_allowed(values, text):
    with pytest.raises(UsageError, match=text):
        Settings(**values)


@pytest.mark.parametrize("text", ['{"colour": 1}', "[]"])
def test_text_of_another_shape(text):
    with pytest.raises(UsageError, match="settings"):
        Settings.from_json(text)
