# SPDX-License-Identifier: Apache-2.0
"""A 1 x 1 convolution of an image times one factor a channel, in one pass, channels last: what follows squeeze-and-excitation.

Hu et al., Squeeze-and-Excitation Networks, 2018. The results are those of torch's product and `linear` one after the other,
natively to the bit; the twin is just that.
"""

from __future__ import annotations

import torch

from slipstream.errors import UsageError
from slipstream.kernels.channels_last.inverted_residual import Pointwise, dense, plain_pointwise
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of


def gated_pointwise(
    x: torch.Tensor, gate: torch.Tensor, stage: Pointwise, *, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """y [N, O, h, w] = post_op(conv(x [N, I, h, w] * gate [N, I, 1, 1]) + bias [O] + residual [N, O, h, w]), channels last.

    x, gate and residual are float32 or bfloat16. The product with the gate has the dtype that torch's has: that of both, or
    float32. x and residual are converted where they are not in memory format channels_last. Raises UsageError for unknown
    post-ops and dtypes, for sizes that do not fit together, and for weights in parts; RuntimeError for a residual that does not
    fit, and where a gradient would have to be recorded.
    """
    code = code_of(stage.post_op)
    check_dtypes(x=x.dtype, gate=gate.dtype, out=stage.out)
    check_image(x, stage.packed.k)
    if gate.shape != (*x.shape[:2], 1, 1):
        raise UsageError.of("gate", f"of shape {tuple(gate.shape)}", f"not of shape {(*x.shape[:2], 1, 1)}")
    if stage.packed.parts != 1:
        raise UsageError.of("stage", f"packed in {stage.packed.parts} parts", "pack it in one")
    refuse_gradients("gated_pointwise", x, gate, stage.bias, residual)
    if not stage.packed.native:
        return plain_gated_pointwise(x, gate, stage, residual=residual)
    if residual is not None:
        check_dtypes(residual=residual.dtype)
        residual = dense(residual)
    bias = None if stage.bias is None else stage.bias.contiguous()
    return torch.ops.slipstream.gated_pointwise.default(
        dense(x), gate.contiguous(), stage.packed.data, stage.packed.n, bias, code, residual, stage.out is torch.bfloat16
    )


def plain_gated_pointwise(
    x: torch.Tensor, gate: torch.Tensor, stage: Pointwise, *, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """The twin: torch's product, then `linear`, natively where the weight is packed so."""
    return plain_pointwise(x * gate, stage, residual)
