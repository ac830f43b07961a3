# SPDX-License-Identifier: Apache-2.0
"""How the tests of the engine look at results: what was decided, how far off an answer is, how far it may be."""

from slipstream.decision import log


def decisions(*, taken=None):
    """The decisions on pieces so far, as {what: reason}."""
    return {d.what: d.reason for d in log if ": " in d.what and taken in (None, d.taken)}


def error(got, wanted):
    """Relative, in the norm."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


LIMIT = {"float32": 1e-5, "bfloat16": 2e-2}
