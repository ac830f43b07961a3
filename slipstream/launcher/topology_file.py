# SPDX-License-Identifier: Apache-2.0
"""Another machine's topology from a file: the text of `lscpu --all --extended`, or a folder with its /sys tree."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slipstream.errors import UsageError
from slipstream.runtime import core_kind
from slipstream.runtime.topology import Cpu, LeftOut, Node, Topology, read_sys


def load_topology(path: str) -> Topology:
    """Whatever ``--topology`` names. Nothing is cut by this process's own limits: it is another machine."""
    place = Path(path)
    if place.is_dir():
        for root in (place, place / "sys"):
            if (root / "devices" / "system" / "cpu").is_dir():
                return read_sys(root)
        raise UsageError(f"--topology {path}: no devices/system/cpu in this folder; record a machine's /sys tree")
    try:
        text = place.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"--topology {path}: {error.strerror or error}") from error
    return parse_lscpu(text, source=path)


def parse_lscpu(text: str, *, source: str = "lscpu text") -> Topology:
    """The CPUs of a table with a header; columns by name; `-` is unknown: socket 0, node of the socket, no clock."""
    lines = [line.split() for line in text.splitlines() if line.split()]
    start = next((index for index, line in enumerate(lines) if "CPU" in line and "CORE" in line), None)
    if start is None:
        raise UsageError(f"--topology {source}: no header with CPU and CORE; give the text of lscpu --all --extended")
    rows = [dict(zip(lines[start], line, strict=False)) for line in lines[start + 1 :]]
    rows = [row for row in rows if row.get("CPU", "").isdigit()]
    online = [row for row in rows if row["CORE"].isdigit() and row.get("ONLINE", "yes") in {"yes", "y", "1"}]
    if not online:
        raise UsageError(f"--topology {source}: no CPU is online in this table")
    core_members: dict[tuple[int, int], list[int]] = {}
    for row in online:
        core_members.setdefault(_core_key(row), []).append(int(row["CPU"]))
    facts = [_facts(row, core_members[_core_key(row)]) for row in online]
    efficient, note = core_kind.efficient_cpus(facts)
    cores = {key: place for place, key in enumerate(sorted(core_members))}
    cpus = tuple(
        sorted(
            (
                Cpu(int(row["CPU"]), cores[_core_key(row)], _socket(row), _node(row), _l3(row), int(row["CPU"]) in efficient)
                for row in online
            ),
            key=lambda cpu: cpu.number,
        )
    )
    return Topology(
        cpus,
        tuple(Node(number) for number in sorted({cpu.node for cpu in cpus})),
        left_out=_offline(rows, cpus),
        notes=(note,) if note else (),
    )


def _facts(row: dict[str, str], siblings: list[int]) -> core_kind.CoreFacts:
    return core_kind.CoreFacts(
        number=int(row["CPU"]),
        socket=_socket(row),
        core_id=int(row["CORE"]),
        siblings=tuple(siblings),
        megahertz=_clock(row.get("MAXMHZ", "-")),
    )


def _offline(rows: Iterable[dict[str, str]], cpus: tuple[Cpu, ...]) -> tuple[LeftOut, ...]:
    online = {cpu.number for cpu in cpus}
    offline = tuple(sorted(int(row["CPU"]) for row in rows if int(row["CPU"]) not in online))
    return (LeftOut(offline, "offline"),) if offline else ()


def _core_key(row: dict[str, str]) -> tuple[int, int]:
    return _socket(row), int(row["CORE"])


def _socket(row: dict[str, str]) -> int:
    return _number(row.get("SOCKET", "-"), 0)


def _node(row: dict[str, str]) -> int:
    """Its own column; the socket where there is no such column; 0 where the column says `-`."""
    return _number(row["NODE"], 0) if "NODE" in row else _socket(row)


def _l3(row: dict[str, str]) -> int:
    """The last of the `L1d:L1i:L2:L3` numbers; the socket where the table has no caches."""
    caches = next((value for name, value in row.items() if name.endswith(":L3")), "-")
    return _number(caches.rpartition(":")[2], _socket(row))


def _number(text: str, default: int) -> int:
    return int(text) if text.isdigit() else default


def _clock(text: str) -> float | None:
    try:
        return float(text.replace(",", "."))  # a comma: written under a locale such as de_DE
    except ValueError:
        return None
