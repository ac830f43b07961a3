# SPDX-License-Identifier: Apache-2.0
"""What the names of intel_extension_for_pytorch (archived in 2026, last release 2.8) are now.

`SERVED`: dotted name without the package -> 'module:attribute'. `PROGRAMS`: what `python -m` runs. `NOT_SERVED`:
dotted name -> why not and what to do instead; it speaks for everything below it too. Names that are in none
of them get `OTHERWISE`.
"""

from __future__ import annotations

_ADAPTERS = "slipstream.compat.adapters"
_RUNTIME = "slipstream.runtime"

_RUNTIME_NAMES = {
    "CPUPool": "cpupool",
    "pin": "cpupool",
    "is_runtime_ext_enabled": "cpupool",
    "Task": "task",
    "MultiStreamModule": "multi_stream",
    "MultiStreamModuleHint": "multi_stream",
    "get_default_num_streams": "multi_stream",
    "_MultiStreamBenchmarkModule": "multi_stream",
    "get_core_list_of_node_id": "runtime_utils",
}
"""Name -> the file of `cpu.runtime` in which scripts also find it."""

SERVED = {
    "__version__": f"{_ADAPTERS}:VERSION",
    "version": f"{_ADAPTERS}:version",
    "optimize": f"{_ADAPTERS}:optimize",
    "frontend.optimize": f"{_ADAPTERS}:optimize",
    "verbose": f"{_ADAPTERS}:verbose",
    "VERBOSE_OFF": f"{_ADAPTERS}:VERBOSE_OFF",
    "VERBOSE_ON": f"{_ADAPTERS}:VERBOSE_ON",
    "VERBOSE_ON_CREATION": f"{_ADAPTERS}:VERBOSE_ON_CREATION",
    "enable_onednn_fusion": f"{_ADAPTERS}:enable_onednn_fusion",
    "FP32MathMode": f"{_ADAPTERS}:FP32MathMode",
    "set_fp32_math_mode": f"{_ADAPTERS}:set_fp32_math_mode",
    "get_fp32_math_mode": f"{_ADAPTERS}:get_fp32_math_mode",
    "enable_auto_channels_last": f"{_ADAPTERS}:enable_auto_channels_last",
    "disable_auto_channels_last": f"{_ADAPTERS}:disable_auto_channels_last",
    "nn.FrozenBatchNorm2d": f"{_ADAPTERS}:FrozenBatchNorm2d",
    "nn.modules.FrozenBatchNorm2d": f"{_ADAPTERS}:FrozenBatchNorm2d",
    "utils.utils.has_cpu": f"{_ADAPTERS}:has_cpu",
    "utils.utils.has_xpu": f"{_ADAPTERS}:has_xpu",
    "cpu.runtime.runtime_utils.get_num_nodes": f"{_ADAPTERS}:get_num_nodes",
    "cpu.runtime.runtime_utils.get_num_cores_per_node": f"{_ADAPTERS}:get_num_cores_per_node",
    **{f"cpu.runtime.{name}": f"{_RUNTIME}:{name}" for name in _RUNTIME_NAMES},
    **{f"cpu.runtime.{file}.{name}": f"{_RUNTIME}:{name}" for name, file in _RUNTIME_NAMES.items()},
}

PROGRAMS = {
    "launcher": f"{_ADAPTERS}:launch",
    "cpu.launch": f"{_ADAPTERS}:launch",
    "cpu.auto_ipex": f"{_ADAPTERS}:launch_codeless",
}

_RUN = "run the script under `ipexrun --auto_ipex --dtype bfloat16` instead"

NOT_SERVED = {
    "xpu": "Slipstream runs on CPUs; for Intel GPUs use the xpu device of PyTorch itself",
    "_C": "the compiled part of the old package has no counterpart; use the public names",
    "llm": f"language models are not rebuilt by name here; load the model with transformers and {_RUN}",
    "optimize_transformers": f"language models are not rebuilt by name here; load with transformers and {_RUN}",
    "quantization": "low-bit recipes of the old package are not taken over; quantize with torchao",
    "cpu.tpp": f"the TPP kernels are not taken over; {_RUN}",
    "tpp": f"the TPP kernels are not taken over; {_RUN}",
    "fast_bert": f"it rebuilt BERT on TPP kernels; {_RUN}",
    "cpu.hypertune": "use `slipstream tune`, which also reads its YAML files",
    "cpu.autocast": "use torch.autocast('cpu', torch.bfloat16)",
    "cpu.comm": "its collectives went into torch.distributed; use that",
    "distributed": "its collectives went into torch.distributed; use that",
    "deepspeed": "install deepspeed itself, which has CPU support of its own",
    "optim": "its fused optimizers were for training, which is left to PyTorch: torch.optim.AdamW(fused=True)",
    "jit": "use torch.jit",
    "fx": "use torch.fx",
    "compile": "use torch.compile",
    "_set_compiler_backend": "use torch.compile(backend=...)",
    "_get_compiler_backend": "use torch.compile(backend=...)",
    "_inductor": "use torch.compile",
    "_dynamo": "use torch.compile",
    "OnDevice": "use torch.device('meta') as a context manager",
    "nn.functional": "write the expression in PyTorch; it is optimized where it runs",
    "nn.modules": "only FrozenBatchNorm2d is taken over; use the module of torch.nn with the same function",
    "nn": "only FrozenBatchNorm2d is taken over; use the module of torch.nn with the same function",
    "cpu.utils": "internal to the old package; use the public names",
    "utils": "internal to the old package; use the public names",
    "cpu.runtime": "not a name of the runtime API; docs/runtime.md lists them",
}

OTHERWISE = "not taken over from intel_extension_for_pytorch; install that package, or remove the use"
