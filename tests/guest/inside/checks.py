# SPDX-License-Identifier: Apache-2.0
"""Run the checks of the machine that the kernel's command line names, and print how many passed."""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path

from launching import attempt, counts


def main() -> None:
    machine = re.search(r"checks=(\w+)", Path("/proc/cmdline").read_text())[1]
    for check in importlib.import_module(machine).CHECKS:
        attempt(check)
    print(f"finished {machine}: {counts['ok']} ok, {counts['FAILED']} FAILED, {time.monotonic():.0f} s", flush=True)


if __name__ == "__main__":
    main()
