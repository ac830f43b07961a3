# SPDX-License-Identifier: Apache-2.0
"""The kernel's text forms of a set of CPUs or nodes: the list `0-3,8` and the hexadecimal mask `10f`."""

from __future__ import annotations

from collections.abc import Iterable

from slipstream.errors import UsageError

LARGEST = 1 << 20
"""No kernel numbers CPUs this high (its limit is 8192), so a typing error such as 0-99999999 is refused at once."""


def parse_cpu_list(text: str, *, argument: str = "CPU list") -> tuple[int, ...]:
    """The numbers of a list such as ``0-3,8`` in ascending order, each once; blank text is the empty list.

    A range that runs backwards or anything that is not a number is a UsageError that names ``argument``.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        item = part.strip()
        if not item:
            if text.strip():
                raise _not_a_list(argument, text)
            continue
        first, dash, last = item.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise _not_a_list(argument, text)
        begin, end = int(first), int(last or first)
        if end < begin:
            raise UsageError(f"{argument} {text}: the range {item} runs backwards; write {end}-{begin}")
        if end > LARGEST:
            raise UsageError(f"{argument} {text}: {end} is beyond any machine's numbers")
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def format_cpu_list(numbers: Iterable[int]) -> str:
    """The shortest list text: ``{0, 1, 2, 3, 8}`` is ``0-3,8``."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{begin}" if begin == end else f"{begin}-{end}" for begin, end in ranges)


def format_mask(numbers: Iterable[int]) -> str:
    """One hexadecimal number with a bit for each CPU: ``{4, 5}`` is ``0x30``."""
    return hex(sum(1 << number for number in set(numbers)))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _not_a_list(argument: str, text: str) -> UsageError:
    return UsageError(f"{argument} {text}: not a list of numbers and ranges such as 0-3,8")
