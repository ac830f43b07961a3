# SPDX-License-Identifier: Apache-2.0
"""A kernel and a root folder for the guest, out of the distribution's own packages; no right of root is needed.

Packages are downloaded and unpacked into a folder, never installed. The root folder becomes an archive that
the kernel unpacks into memory (initramfs, "newc" format): Linux, Documentation/driver-api/early-userspace.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

KERNEL = "linux-image-cloud-amd64"
WITH_DEPENDENCIES = ("python3", "python3-psutil", "numactl")
ALONE = ("busybox-static", "util-linux", "libsmartcols1")
UNUSED = re.compile(r"perl|debconf|dpkg|mailcap|mime|media-types|tar$|install-info|gcc-")
"""Needed by the packages' installation scripts only."""

NOT_COPIED = re.compile(r"usr/share|boot|lib/modules|usr/lib/[^/]+/(gconv|perl.*)|.*/(__pycache__|idlelib|lib2to3|ensurepip)")
BUSYBOX = ("sh", "mount", "poweroff", "grep", "true")
CONSOLE_DEVICE = (5, 1)
IPEXRUN = """#!/usr/bin/python3
import sys
from slipstream.launcher.cli import ipexrun
sys.exit(ipexrun())
"""


def build(folder: Path, package: Path, inside: Path) -> tuple[Path, Path]:
    """(kernel, initramfs) made in ``folder``: Python, ``package`` (the slipstream folder) and the files of ``inside``."""
    kernel = _kernel(_made(folder / "kernel"))
    root = _made(folder / "root")
    names = sorted(dependencies(WITH_DEPENDENCIES) | set(ALONE))
    _unpack(_download(names, _made(folder / "packages")), root)
    _complete(root, package, inside)
    archive = folder / "root.cpio"
    with archive.open("wb") as file:
        for piece in archived(root):
            file.write(piece)
    return kernel, archive


def dependencies(packages: Sequence[str]) -> set[str]:
    """The packages and all that they depend on, without what only serves to install them."""
    only_needed = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    graph: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in _output("apt-cache", "depends", "--recurse", *only_needed, *packages).splitlines():
        if line.startswith(" "):
            lines.append(line.rpartition(":")[2].strip())
        else:
            lines = graph.setdefault(line.partition(":")[0], [])
    found: set[str] = set()
    open_ones = list(packages)
    while open_ones:
        name = open_ones.pop()
        if name in graph and name not in found and not UNUSED.search(name):  # not in the graph: virtual, as <python3:any>
            found.add(name)
            open_ones += graph[name]
    return found


def archived(root: Path) -> Iterator[bytes]:
    """The tree under ``root`` in the kernel's archive format, with a console for the first process."""
    number = 0
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if NOT_COPIED.match(name):
            continue
        number += 1
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield _entry(number, name, mode, str(path.readlink()).encode())
        else:
            yield _entry(number, name, mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
    yield _entry(number + 1, "dev/console", stat.S_IFCHR | 0o600, b"", device=CONSOLE_DEVICE)
    yield _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, name: str, mode: int, content: bytes, *, device: tuple[int, int] = (0, 0)) -> bytes:
    # inode, mode, owner, group, links, time, size, device (2), device described (2), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name.encode()) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _kernel(folder: Path) -> Path:
    """The image in the package that the metapackage depends on today."""
    versions = [name for name in dependencies([KERNEL]) if re.match(r"linux-image-\d", name)]
    _unpack(_download(sorted(versions), _made(folder / "packages")), folder)
    return next((folder / "boot").glob("vmlinuz-*"))


def _download(names: Sequence[str], folder: Path) -> list[Path]:
    # Downloads as the calling user: apt's own has no right to write here, and says so at length.
    subprocess.run(["apt-get", "-q=2", "-o", "APT::Sandbox::User=", "download", *names], cwd=folder, check=True)
    return sorted(folder.glob("*.deb"))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)


def _complete(root: Path, package: Path, inside: Path) -> None:
    """What no package brings: links, mount points, the first process, the launcher, the checks."""
    for name in ("bin", "sbin", "lib", "lib64"):  # newer releases have all of it under usr
        if not (root / name).exists() and (root / "usr" / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "tmp", "run", "etc"):
        _made(root / name)
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    for name in BUSYBOX:
        if not (busybox.parent / name).exists():
            (busybox.parent / name).symlink_to("busybox")
    shutil.copytree(package, root / "repository/slipstream", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(inside, root / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(inside / "init", root / "init")
    command = _made(root / "usr/local/bin") / "ipexrun"
    command.write_text(IPEXRUN)
    for path in (command, root / "init"):
        path.chmod(0o755)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
