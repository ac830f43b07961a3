# SPDX-License-Identifier: Apache-2.0
"""Flags into validated, frozen values. Raises UsageError with one line; has no effects but looking whether files exist."""

from __future__ import annotations

import argparse
import pathlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks import instruction_sets
from benchmarks.contest import contestants
from slipstream.errors import UsageError

MODELS = (
    "resnet50", "resnet50_b1", "mobilenet", "efficientnet", "convnext", "vit", "swin", "unet",
    "bert", "bert_b1", "bertqa", "distilbert", "deberta", "t5", "whisper", "wav2vec2", "clip", "dlrm", "lstm",
)  # fmt: skip
"""The keys of models.CASES, which cannot be imported without torch; a test holds the two together."""

EXAMPLES = ("semantic_search", "classify_text", "classify_images")
DTYPES = contestants.DTYPES
FAMILIES = (
    "linear", "linear_float32", "linear_int8", "convolution", "convolution_last", "depthwise", "winograd", "attention",
    "batched_matmul", "norm", "group_norm", "max_pool", "recurrent", "concatenate", "activation", "transpose",
)  # fmt: skip
"""linear and the keys of kernel_families.FAMILIES, which cannot be imported without torch; a test holds the two together."""


@dataclass(frozen=True)
class ZooOptions:
    """What to run, for how long, and where to leave it. ``seconds`` is for one contestant in one round.

    ``isa`` is the level whose instructions every contestant is held to; None where all may use what the machine has.
    """

    models: tuple[str, ...] = MODELS
    modes: tuple[str, ...] = contestants.DEFAULT
    rounds: int = 3
    seconds: float = 1.5
    threads: int = field(default_factory=contestants.usable_threads)
    interpreters: dict[str, str] = field(default_factory=dict)
    isa: str | None = None
    json: pathlib.Path | None = None
    picture: pathlib.Path | None = None


@dataclass(frozen=True)
class DemoOptions:
    examples: tuple[str, ...] = EXAMPLES
    rounds: int = 3
    quick: bool = False
    json: pathlib.Path | None = None


@dataclass(frozen=True)
class KernelOptions:
    dtypes: tuple[str, ...] = DTYPES
    models: tuple[str, ...] = ("bert-base", "vit-l", "llama-1b")
    rows: tuple[int, ...] = (1, 4, 16, 64, 128, 512, 1024, 2048)
    families: tuple[str, ...] = FAMILIES
    rounds: int = 5
    threads: int = field(default_factory=contestants.usable_threads)
    isa: str | None = None
    json: pathlib.Path | None = None


@dataclass(frozen=True)
class InstancesOptions:
    """``cores`` are divided evenly; ``seconds`` is how long each instance counts."""

    cores: int = field(default_factory=contestants.usable_threads)
    rounds: int = 3
    seconds: float = 8
    json: pathlib.Path | None = None
    picture: pathlib.Path | None = None


def instances(flags: argparse.Namespace) -> InstancesOptions:
    return InstancesOptions(
        cores=_threads(flags.threads),
        rounds=_at_least_one("--rounds", flags.rounds),
        seconds=_positive("--seconds", flags.seconds),
        json=_writable("--json", flags.json),
        picture=_writable("--picture", flags.picture, suffix=".svg"),
    )


def zoo(flags: argparse.Namespace) -> ZooOptions:
    interpreters = {
        name: _interpreter(f"--{name}", getattr(flags, name)) for name in ("ipex", "openvino") if getattr(flags, name)
    }
    modes = _chosen("--modes", flags.modes, contestants.ALL) or contestants.DEFAULT
    for mode in modes:
        engine = contestants.ALL[mode].engine
        if flags.modes and engine != "own" and engine not in interpreters:
            raise UsageError(f"--modes {mode}: needs the interpreter of that peer; give --{engine} PYTHON")
    runnable = [mode for mode in modes if contestants.ALL[mode].engine in {"own", *interpreters}]
    return ZooOptions(
        models=_chosen("--models", flags.models, MODELS) or MODELS,
        modes=tuple(dict.fromkeys([contestants.BASE, *runnable])),
        rounds=_at_least_one("--rounds", flags.rounds),
        seconds=_positive("--seconds", flags.seconds),
        threads=_threads(flags.threads),
        interpreters=interpreters,
        isa=_held(flags.isa),
        json=_writable("--json", flags.json),
        picture=_writable("--picture", flags.picture, suffix=".svg"),
    )


def demo(flags: argparse.Namespace) -> DemoOptions:
    return DemoOptions(
        examples=_chosen("--examples", flags.examples, EXAMPLES) or EXAMPLES,
        rounds=_at_least_one("--rounds", flags.rounds),
        quick=flags.quick,
        json=_writable("--json", flags.json),
    )


def kernels(flags: argparse.Namespace) -> KernelOptions:
    defaults = KernelOptions()
    return KernelOptions(
        dtypes=_chosen("--dtypes", flags.dtypes, DTYPES) or DTYPES,
        models=_chosen("--shapes", flags.shapes, defaults.models) or defaults.models,
        rows=_row_counts("--rows", flags.rows) if flags.rows else defaults.rows,
        families=_chosen("--families", flags.families, FAMILIES) or FAMILIES,
        rounds=_at_least_one("--rounds", flags.rounds),
        threads=_threads(flags.threads),
        isa=_held(flags.isa),
        json=_writable("--json", flags.json),
    )


def reports(flags: argparse.Namespace) -> dict[str, pathlib.Path]:
    """Which report stands in which file; at least one."""
    given = {name: getattr(flags, name) for name in ("demo", "zoo", "kernels") if getattr(flags, name)}
    if not given:
        raise UsageError("write-up: nothing to write up; give --demo, --zoo or --kernels with a file that --json wrote")
    for name, text in given.items():
        if not pathlib.Path(text).is_file():
            raise UsageError.of(f"--{name}", text, "is not a file")
    return {name: pathlib.Path(text) for name, text in given.items()}


def _chosen(flag: str, text: str | None, allowed: Iterable[str]) -> tuple[str, ...]:
    """Names out of a comma-separated list, each once, in the order given; () for no flag."""
    names = dict.fromkeys(name.strip() for name in text.split(",")) if text else {}
    for name in names:
        if name not in allowed:
            raise UsageError.of(flag, name, allowed)
    return tuple(names)


def _held(level: str | None) -> str | None:
    if level is not None and level not in (allowed := instruction_sets.available()):
        raise UsageError.of("--isa", level, allowed)
    return level


def _row_counts(flag: str, text: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and int(piece) for piece in pieces):
        raise UsageError.of(flag, text, "must be numbers of 1 or more with commas between them")
    return tuple(dict.fromkeys(map(int, pieces)))


def _at_least_one(flag: str, value: int) -> int:
    if value < 1:
        raise UsageError.of(flag, value, "must be 1 or more")
    return value


def _positive(flag: str, value: float) -> float:
    if not value > 0:
        raise UsageError.of(flag, value, "must be more than 0")
    return value


def _threads(value: int | None) -> int:
    usable = contestants.usable_threads()
    if value is None:
        return usable
    if not 1 <= value <= usable:
        raise UsageError.of("--threads", value, f"must be 1 to {usable}, the CPUs that this process may use")
    return value


def _interpreter(flag: str, text: str) -> str:
    found = shutil.which(text)
    if found is None:
        raise UsageError.of(flag, text, "is not a program that can be run")
    # not resolved further: a virtual environment's interpreter is a link, and its place is what makes it one
    return str(pathlib.Path(found).absolute())


def _writable(flag: str, text: str | None, *, suffix: str = "") -> pathlib.Path | None:
    if text is None:
        return None
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise UsageError.of(flag, text, "its folder is not there")
    if suffix and path.suffix != suffix:
        raise UsageError.of(flag, text, f"must end in {suffix}")
    return path
