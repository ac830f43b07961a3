# SPDX-License-Identifier: Apache-2.0
"""What the codeless engine was asked for: a value that travels from the launcher to each process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from slipstream.errors import UsageError

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True)
class Settings:
    """The engine's flags.

    ``dtype`` is what weights and sums may be computed in; inputs and outputs keep the dtype of the script.
    ``children`` says whether processes that the script starts are covered too. ``budget_s`` bounds the
    seconds that packing and guarding may take in one process. ``low_memory`` keeps one copy of a weight in
    memory: its pack, with the weight itself in a file.
    ``early_graphs`` captures a model after three calls, and not only once its graph can be expected to pay for itself.
    ``decides_only`` plans, packs and checks each piece, and lets the original answer (`slipstream inspect`).
    ``at_once`` lets every piece that is right answer from its first call on, however fast it is, so that one run
    decides as another (`slipstream bisect`).
    """

    dtype: str = "float32"
    graph_mode: bool = True
    verbose: bool = False
    float32_matmul_precision: str | None = None
    children: bool = True
    budget_s: float | None = None
    low_memory: bool = False
    decides_only: bool = False
    at_once: bool = False
    early_graphs: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError.of("dtype", self.dtype, DTYPES)
        if self.float32_matmul_precision not in (None, *PRECISIONS):
            raise UsageError.of("float32_matmul_precision", self.float32_matmul_precision, PRECISIONS)
        if self.budget_s is not None and not self.budget_s >= 0:
            raise UsageError.of("budget_s", self.budget_s, "must be zero or more seconds")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read settings back; a key that this version does not know is an error of ours, not of the user."""
        values = json.loads(text)
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            allowed = f"must be an object with keys among {', '.join(sorted(known))}"
            raise UsageError.of("settings", text, allowed)
        return cls(**values)
