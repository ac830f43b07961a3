# SPDX-License-Identifier: Apache-2.0
"""From words to flags: spellings made one, the program's own arguments kept byte for byte.

The first word that is neither a flag nor a flag's value is the program; nothing after it is looked at.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.errors import UsageError
from slipstream.launcher.flags import BY_NAME, GROUPS, Flag
from slipstream.launcher.legacy import LEGACY

DESCRIPTION = "Run an unmodified program on CPU near the hardware's limit: cores planned, bound, watched."
USAGE = "[flags] [-m | --no-python] PROGRAM [arguments of the program]"


@dataclass(frozen=True)
class CommandLine:
    """What was typed: values by flag (defaults filled in), the flags that were given, the program's words."""

    values: argparse.Namespace
    given: frozenset[str]
    program: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Word:
    typed: str
    name: str
    value: str


def parse_command_line(words: Sequence[str], *, command: str) -> CommandLine:
    """Everything that ``words`` say. ``-h`` among the flags prints the help and exits 0."""
    flags, program = _split(words)
    names = {word.name for word in flags}
    canonical: list[str] = []
    notes: list[str] = []
    for word in flags:
        canonical += _today(word, names, notes)
    values = build_parser(command).parse_args(canonical)
    given = frozenset(word[2:].partition("=")[0] for word in canonical if word.startswith("--"))
    return CommandLine(values, given, tuple(program), tuple(notes))


def build_parser(command: str) -> argparse.ArgumentParser:
    """The table of flags as an argument parser; its errors are UsageErrors."""
    parser = _Parser(prog=command, usage=f"{command} {USAGE}", description=DESCRIPTION, allow_abbrev=False)
    for title, group in GROUPS.items():
        section = parser.add_argument_group(title)
        for flag in group:
            _add(section, flag)
    return parser


def _add(section: argparse._ArgumentGroup, flag: Flag) -> None:
    names = [f"-{flag.short}"] * bool(flag.short) + [f"--{flag.name}"]
    meaning = flag.meaning.replace("%", "%%")
    if flag.kind == "switch":
        section.add_argument(*names, action="store_true", help=meaning)
        return
    if flag.default not in (None, "", ()) and flag.kind != "count":
        meaning += f" (default {flag.default})"
    section.add_argument(
        *names,
        type={"integer": _integer, "count": _integer, "number": _number}.get(flag.kind, str),
        choices=flag.choices or None,
        action="append" if flag.kind == "texts" else "store",
        default=list(flag.choices[:0]) if flag.kind == "texts" else flag.default,
        metavar=flag.value or None,
        help=meaning,
    )


def _split(words: Sequence[str]) -> tuple[list[_Word], list[str]]:
    flags: list[_Word] = []
    place = 0
    while place < len(words):
        typed = words[place]
        if typed == "--":
            return flags, list(words[place + 1 :])
        if not typed.startswith("-") or typed == "-":
            break
        spelled, equals, value = typed.partition("=")
        name = _resolve(spelled)
        if name in BY_NAME and BY_NAME[name].kind == "count" and not equals:
            told = place + 1 < len(words) and words[place + 1].isdigit()
            flags.append(_Word(spelled, name, words[place + 1] if told else "1"))
            place += 1 + told
            continue
        takes_value = BY_NAME[name].takes_value if name in BY_NAME else name in LEGACY and LEGACY[name].takes_value
        if takes_value and not equals:
            place += 1
            if place >= len(words):
                raise UsageError(f"{typed}: a value is missing after it; see --help")
            value = words[place]
        elif equals and not takes_value:
            raise UsageError(f"{spelled} {value}: it takes no value")
        flags.append(_Word(spelled, name, value))
        place += 1
    return flags, list(words[place:])


def _resolve(typed: str) -> str:
    """The full name of a flag in dashes; a unique beginning is enough, as it was in every release."""
    if typed in {"-h", "--help"}:
        return "help"
    short = {f"-{flag.short}": flag.name for flag in BY_NAME.values() if flag.short}
    if typed in short:
        return short[typed]
    name = typed.lstrip("-").replace("_", "-")
    if typed.startswith("--"):
        for table in (BY_NAME, LEGACY):
            if name in table:
                return name
        for names in (BY_NAME.keys(), LEGACY.keys()):
            matches = sorted(full for full in names if name and full.startswith(name))
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UsageError(f"{typed}: may be " + " or ".join(f"--{match}" for match in matches))
    close = difflib.get_close_matches(name, [*BY_NAME, *LEGACY], n=1)
    hint = f"did you mean --{close[0]}?" if close else "see --help"
    raise UsageError(f"{typed}: no such flag; {hint}")


def _today(word: _Word, given: set[str], notes: list[str]) -> list[str]:
    """Today's words for one flag. A value is joined by ``=``, so that -1 is not taken for a flag."""
    if word.name == "help":
        return ["--help"]
    if word.name in BY_NAME:
        return [f"--{word.name}={word.value}" if BY_NAME[word.name].takes_value else f"--{word.name}"]
    legacy = LEGACY[word.name]
    old = f"{word.typed} {word.value}".rstrip()
    if legacy.unset and word.value == legacy.unset:
        notes.append(f"{old} means unset and is dropped")
        return []
    words = legacy.words(word.value, given)
    if not words:
        notes.append(f"{old} is dropped: {legacy.note}")
        return []
    notes.append(f"{old} is now spelled {' '.join(words)}")
    return ["=".join(words)]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: not a number of seconds above 0")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        text = message.removeprefix("argument ")
        raise UsageError(f"{text}; see --help")
