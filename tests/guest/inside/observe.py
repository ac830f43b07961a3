# SPDX-License-Identifier: Apache-2.0
"""The program that the launcher starts in the guest: writes down where it finds itself, as JSON.

`observe.py FOLDER [--megabytes N] [--seconds S] [--move-to CPUS] [--map-file FILE]` writes FOLDER/INDEX.json,
INDEX being the instance's. All of it is the kernel's own word (/proc), for this process, a thread of it and a forked child.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import re
import threading
import time
from pathlib import Path

MEGABYTE = 1 << 20
PAGE = mmap.PAGESIZE

held: list[mmap.mmap] = []
"""Memory that stays with the process to its end, where the launcher looks at it."""


def main() -> None:
    words = arguments()
    if words.move_to:
        os.sched_setaffinity(0, {int(number) for number in words.move_to.split(",")})
    if words.map_file:
        held.append(mapped(words.map_file))
    seen = {
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "process": observed(words.megabytes),
        "thread": in_thread(),
        "child": in_child(),
    }
    index = json.loads(os.environ["SLIPSTREAM_PLAN"])["index"]
    file = words.folder / f"{index}.json"
    file.with_suffix(".part").write_text(json.dumps(seen))
    file.with_suffix(".part").rename(file)
    time.sleep(words.seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--move-to", default="")
    parser.add_argument("--map-file", type=Path)
    return parser.parse_args()


def observed(megabytes: int = 8) -> dict[str, object]:
    """What the kernel says of the calling thread: its CPUs, one it ran on, and the policy and place of fresh pages."""
    memory = mmap.mmap(-1, megabytes * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # interleaving goes by pages, so that even few megabytes show it
    held.append(memory)
    for start in range(0, len(memory), PAGE):
        memory[start] = 1
    policy, pages = placed(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    return {"cpus": cpus_allowed(), "ran_on": last_cpu(), "policy": policy, "pages": pages}


def mapped(path: Path) -> mmap.mmap:
    """A file as torch.load(mmap=True) maps it: privately; all of it read, one page written."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    for start in range(0, len(memory), PAGE):
        memory[start]
    memory[0] = 1
    return memory


def placed(address: int) -> tuple[str, dict[str, int]]:
    """(policy, pages by node) of the mapping that holds ``address``: the last one that begins at or below it."""
    found = ("", {})
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        begin, policy, *_ = line.split()
        if int(begin, 16) <= address:
            found = (policy, {node: int(count) for node, count in re.findall(r"\bN(\d+)=(\d+)", line)})
    return found


def cpus_allowed() -> str:
    status = Path("/proc/thread-self/status").read_text()
    return re.search(r"^Cpus_allowed_list:\s*(\S*)$", status, re.M)[1]


def last_cpu() -> int:
    """Field 39 of proc(5)'s stat; the second may hold blanks and ends with the last parenthesis."""
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])


def in_thread() -> dict[str, object]:
    found: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: found.append(observed()))
    thread.start()
    thread.join()
    return found[0]


def in_child() -> dict[str, object]:
    """As a DataLoader's worker would find itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(observed()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


if __name__ == "__main__":
    main()
