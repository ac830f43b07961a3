# SPDX-License-Identifier: Apache-2.0
"""Why a forward does not become a graph."""

from __future__ import annotations


class CaptureRefused(Exception):
    """The forward is not one graph; the text says why, in one line."""

    is_final = False
    """Whether another capture would be refused as well, for what calls so ever."""

    is_passing = False
    """Whether the next one may be just as well as this one would have been."""

    is_of_parts = False
    """Whether it says of the module's parts what it says of the module."""


class CaptureTakesLong(CaptureRefused):
    """It was given up."""

    is_final = is_of_parts = True


class NothingToGain(CaptureRefused):
    """No operation in it is one of ours."""

    is_final = is_of_parts = True


class BranchOnValue(CaptureRefused):
    """What a tensor's value decided in a call has to be known first."""

    is_passing = True


class CaptureDisturbed(CaptureRefused):
    """The script changed the state of the process meanwhile."""

    is_passing = True
