# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m benchmarks`: flags and their help, no decisions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from benchmarks import instruction_sets, options
from slipstream.errors import MissingDependency, UsageError


class OneLineParser(argparse.ArgumentParser):
    """A mistake in the flags is one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"benchmarks: {message}\n")


def parser() -> OneLineParser:
    top = OneLineParser(prog="python -m benchmarks", description="Measure, in this sitting and on this machine.")
    acts = top.add_subparsers(dest="act", required=True, metavar="demo|zoo|kernels|instances|ceilings|write-up")

    demo = acts.add_parser("demo", help="unmodified scripts, plain and under ipexrun")
    demo.add_argument("--examples", help="comma-separated: " + ",".join(options.EXAMPLES))
    demo.add_argument("--rounds", type=int, default=3, help="how often each runs, in turn (default 3)")
    demo.add_argument("--quick", action="store_true", help="small settings: shows that it works, not how fast it is")

    zoo = acts.add_parser("zoo", help="whole models against eager, torch.compile and peers")
    zoo.add_argument("--models", help="comma-separated: " + ",".join(options.MODELS))
    zoo.add_argument("--modes", help="comma-separated: " + ",".join(options.contestants.ALL))
    zoo.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default 3)")
    zoo.add_argument("--seconds", type=float, default=1.5, help="length of one turn (default 1.5)")
    zoo.add_argument("--ipex", metavar="PYTHON", help="interpreter that has intel_extension_for_pytorch")
    zoo.add_argument("--openvino", metavar="PYTHON", help="interpreter that has openvino")
    zoo.add_argument("--picture", metavar="FILE.svg", help="draw the speed-ups")

    kernels = acts.add_parser("kernels", help="each family of kernels against torch's own")
    kernels.add_argument("--families", help="comma-separated: " + ",".join(options.FAMILIES))
    kernels.add_argument("--dtypes", help="comma-separated: " + ",".join(options.DTYPES))
    kernels.add_argument("--shapes", help="of linear, comma-separated: " + ",".join(options.KernelOptions.models))
    kernels.add_argument("--rows", help="of linear, comma-separated numbers (default 1,4,16,64,128,512,1024,2048)")
    kernels.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default 5)")

    instances = acts.add_parser("instances", help="many small instances of a script against one large one")
    instances.add_argument("--rounds", type=int, default=3, help="how often each layout runs, in turn (default 3)")
    instances.add_argument("--seconds", type=float, default=8, help="how long each instance counts (default 8)")
    instances.add_argument("--picture", metavar="FILE.svg", help="draw the throughputs")

    acts.add_parser("ceilings", help="what this machine's instructions and memory can do at most")
    write_up = acts.add_parser("write-up", help="what --json wrote, as Markdown on stdout")
    for name in ("demo", "zoo", "kernels"):
        write_up.add_argument(f"--{name}", metavar="FILE")
    for act in (zoo, kernels):
        act.add_argument("--isa", metavar="LEVEL", help="hold everybody to a lower level's instructions, such as avx2")
    for act in (zoo, kernels, instances):
        act.add_argument("--threads", type=int, help="default: one for each CPU that may be used")
    for act in (demo, zoo, kernels, instances):
        act.add_argument("--json", metavar="FILE", help="write every sample")
    return top


def main(argv: Sequence[str]) -> int:
    flags = parser().parse_args(argv)
    try:
        return _act(flags)
    except UsageError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except MissingDependency as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _hold(level: str | None) -> None:
    """For this process, before it loads torch, and for those that it starts."""
    if level is not None:
        os.environ.update(instruction_sets.held_to(level))


def _act(flags: argparse.Namespace) -> int:
    if flags.act == "demo":
        from benchmarks import demo

        return demo.run(options.demo(flags))
    if flags.act == "zoo":
        chosen = options.zoo(flags)
        _hold(chosen.isa)
        from benchmarks import zoo

        return zoo.run(chosen)
    if flags.act == "kernels":
        measured = options.kernels(flags)
        _hold(measured.isa)
        from benchmarks import kernels

        return kernels.run(measured)
    if flags.act == "instances":
        from benchmarks import instances

        return instances.run(options.instances(flags))
    if flags.act == "write-up":
        from benchmarks import write_up

        print(write_up.markdown(options.reports(flags)), end="")
        return 0
    from benchmarks import ceilings, machine, tables

    tables.show_machine(machine.describe(), ceilings.measure(options.contestants.usable_threads()))
    return 0
