# SPDX-License-Identifier: Apache-2.0
"""The old package's signatures, on Slipstream's and PyTorch's own verbs.

What an old argument asked for and nobody does here is never swallowed: it is noted in `decision.log`, which the
report prints.
"""

from __future__ import annotations

import copy
import enum
import functools
import importlib
import sys
from typing import Any

import slipstream
from slipstream import decision
from slipstream.errors import UsageError

VERSION = f"2.8.0+slipstream.{slipstream.__version__}"
"""The release whose names are served, as a version that compares like it."""

VERBOSE_OFF = 0
VERBOSE_ON = 1
VERBOSE_ON_CREATION = 2

_LEVELS = ("O0", "O1")
_HONOURED = frozenset({"model", "dtype", "optimizer", "level", "inplace"})


class FP32MathMode(enum.IntEnum):
    """How float32 is multiplied: exactly, with TF32's ten bits, or with bfloat16's seven (sums are float32)."""

    FP32 = 0
    TF32 = 1
    BF32 = 2


_PRECISIONS = {FP32MathMode.FP32: "highest", FP32MathMode.TF32: "high", FP32MathMode.BF32: "medium"}


def version() -> None:
    """Print the version."""
    sys.stdout.write(f"intel_extension_for_pytorch version:          {VERSION}\n")


def optimize(
    model: Any,
    dtype: Any = None,
    optimizer: Any = None,
    level: str = "O1",
    inplace: bool = False,
    conv_bn_folding: bool | None = None,
    linear_bn_folding: bool | None = None,
    weights_prepack: bool | None = None,
    replace_dropout_with_identity: bool | None = None,
    optimize_lstm: bool | None = None,
    split_master_weight_for_bf16: bool | None = None,
    fuse_update_step: bool | None = None,
    auto_kernel_selection: bool | None = None,
    sample_input: Any = None,
    graph_mode: bool | None = None,
    concat_linear: bool | None = None,
) -> Any:
    """`ipex.optimize` as `optimize_model(model, dtype=dtype, inplace=inplace)`.

    With an optimizer, which means training, model and optimizer come back as a pair, as they are: Slipstream is for
    inference. Level O0 gives the model back (a copy unless ``inplace``). The switches for single passes are noted and not
    followed: each pass decides for itself, and keeps to what is exact. Raises UsageError for an unknown level.
    """
    arguments = dict(locals())
    if level not in _LEVELS:
        raise UsageError.of("level", level, _LEVELS)
    for name, value in arguments.items():
        if name not in _HONOURED and value is not None:
            asked = value if isinstance(value, bool) else f"a {type(value).__name__}"
            reason = f"{asked} was given; each pass decides for itself here, layer by layer"
            decision.log.note(f"ipex.optimize: {name}", False, reason)
    if optimizer is not None:
        reason = "Slipstream is for inference; model and optimizer are as they were"
        decision.log.note("ipex.optimize: training", False, reason)
        return model, optimizer
    if level == "O0":
        return model if inplace else copy.deepcopy(model)
    optimize_model = _resolve("slipstream.optimize.optimize_model:optimize_model")
    return optimize_model(model, dtype=dtype, inplace=inplace)


def verbose(level: int) -> Any:
    """A context manager in which oneDNN prints a line for each of its primitives (level 1; 2: their making too)."""
    import torch

    if level not in (VERBOSE_OFF, VERBOSE_ON, VERBOSE_ON_CREATION):
        raise UsageError.of("level", level, (VERBOSE_OFF, VERBOSE_ON, VERBOSE_ON_CREATION))
    return torch.backends.mkldnn.verbose(level)


def enable_onednn_fusion(enabled: bool = True) -> None:
    """Switch oneDNN's fusions of TorchScript graphs on or off, for graphs made from now on."""
    import torch

    torch.jit.enable_onednn_fusion(enabled)


def set_fp32_math_mode(mode: FP32MathMode = FP32MathMode.FP32, device: str = "cpu") -> None:
    """How float32 matrix products and convolutions may be computed in this process.

    It sets PyTorch's own switches, which Slipstream's kernels obey too. Raises UsageError for a mode that is none,
    and for a device other than the CPU.
    """
    import torch

    _require_cpu(device)
    if mode not in list(FP32MathMode):
        raise UsageError.of("mode", mode, [str(choice) for choice in FP32MathMode])
    torch.set_float32_matmul_precision(_PRECISIONS[FP32MathMode(mode)])
    # Convolutions have a switch of their own, and no TF32 on CPU: that mode leaves them exact.
    convolution: Any = getattr(torch.backends.mkldnn, "conv")  # noqa: B009 - torch's module hides it from mypy
    convolution.fp32_precision = "bf16" if mode == FP32MathMode.BF32 else "none"


def get_fp32_math_mode(device: str = "cpu") -> FP32MathMode:
    """The mode that holds now for matrix products."""
    import torch

    _require_cpu(device)
    modes = {precision: mode for mode, precision in _PRECISIONS.items()}
    return modes[torch.get_float32_matmul_precision()]


def enable_auto_channels_last() -> None:
    """Noted only: the layout is chosen layer by layer, and the caller's tensors keep theirs."""
    _note_channels_last("on")


def disable_auto_channels_last() -> None:
    """Noted only, as `enable_auto_channels_last`."""
    _note_channels_last("off")


def has_cpu() -> bool:
    """Always true."""
    return True


def has_xpu() -> bool:
    """Always false: Slipstream runs on CPUs."""
    return False


def get_num_nodes() -> int:
    """How many NUMA nodes have a CPU that this process may use."""
    return len({cpu.node for cpu in _resolve("slipstream.runtime.topology:read_topology")().cpus})


def get_num_cores_per_node() -> int:
    """How many physical cores this process may use on its largest NUMA node."""
    cores = {(cpu.node, cpu.core) for cpu in _resolve("slipstream.runtime.topology:read_topology")().cpus}
    nodes = [node for node, _ in cores]
    return max(nodes.count(node) for node in nodes)


def launch() -> int:
    """`python -m intel_extension_for_pytorch.cpu.launch …` and `….launcher …`: `ipexrun …`."""
    return int(_resolve("slipstream.launcher.cli:ipexrun")(sys.argv[1:]))


def launch_codeless() -> int:
    """`python -m intel_extension_for_pytorch.cpu.auto_ipex …`: `ipexrun --auto-ipex …`."""
    return int(_resolve("slipstream.launcher.cli:ipexrun")(["--auto-ipex", *sys.argv[1:]]))


def __getattr__(name: str) -> Any:
    """`FrozenBatchNorm2d`, made on first use: its class needs torch, and this file must not import it."""
    if name == "FrozenBatchNorm2d":
        return _frozen_batch_norm_2d()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@functools.cache
def _frozen_batch_norm_2d() -> type:
    import torch

    class FrozenBatchNorm2d(torch.nn.Module):
        """Batch normalization of [N, C, H, W] by constants: four buffers of C numbers, none of them learnt.

        y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, in the wider of the input's and the
        buffers' dtypes. As in torchvision.ops, state dicts of a BatchNorm2d load as well: their
        ``num_batches_tracked`` is left out.
        """

        __qualname__ = "FrozenBatchNorm2d"  # where pickle finds it
        weight: torch.Tensor
        bias: torch.Tensor
        running_mean: torch.Tensor
        running_var: torch.Tensor

        def __init__(self, num_features: int, eps: float = 1e-5) -> None:
            super().__init__()
            self.eps = eps
            self.register_buffer("weight", torch.ones(num_features))
            self.register_buffer("bias", torch.zeros(num_features))
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))

        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            state_dict.pop(f"{prefix}num_batches_tracked", None)
            super()._load_from_state_dict(state_dict, prefix, *args)

        def forward(self, x: Any) -> Any:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)

        def extra_repr(self) -> str:
            return f"{self.weight.shape[0]}, eps={self.eps}"

    return FrozenBatchNorm2d


def _note_channels_last(asked: str) -> None:
    reason = "the layout is chosen layer by layer here, and the caller's tensors keep theirs"
    decision.log.note(f"ipex auto channels last: {asked}", False, reason)


def _require_cpu(device: str) -> None:
    if device != "cpu":
        raise UsageError.of("device", device, ("cpu",), "for Intel GPUs use the xpu device of PyTorch itself")


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
