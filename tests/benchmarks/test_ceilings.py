# SPDX-License-Identifier: Apache-2.0
"""The probe compiles, measures what is there, and says null for what is not."""

import os
import pathlib
import shutil
import subprocess

import pytest

from benchmarks import ceilings, instruction_sets, machine

CPUINFO = pathlib.Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_figures_are_there_for_exactly_what_the_processor_has():
    figures = ceilings.measure(1, seconds=0.05)
    assert len(figures) == 1 and figures[0].keys() == {"threads", *ceilings.UNITS}
    there, _ = machine.features_in(CPUINFO)
    assert figures[0]["read_gb_per_s"] > 0
    assert (figures[0]["fma_float32_tflops"] is not None) == bool({"AVX2", "AVX-512"} & set(there))
    assert (figures[0]["fma_float16_tflops"] is not None) == ("AVX-512 FP16" in there)
    assert (figures[0]["dot_bfloat16_tflops"] is not None) == ("AVX-512 BF16" in there)
    if "AMX BF16" not in there:  # where it is there, the kernel may still refuse it
        assert figures[0]["amx_bfloat16_tflops"] is None and figures[0]["amx_bfloat16_fed_tflops"] is None


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_no_figures_beyond_the_level_that_is_asked_for():
    measured = {level: ceilings.measure(1, seconds=0.05, level=level)[0] for level in instruction_sets.available()}
    for level, figures in measured.items():
        assert figures["fma_float32_tflops"] is not None and figures["amx_bfloat16_tflops"] is None
        assert (figures["dot_bfloat16_tflops"] is not None) == level.startswith(("avx512_bf16", "avx512_fp16"))
        assert (figures["fma_float16_tflops"] is not None) == (level == "avx512_fp16")


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_the_probe_refuses_what_it_cannot_run():
    probe = ceilings.compiled_probe()
    done = subprocess.run([probe, "none"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "usage" in done.stderr


def test_without_a_compiler_there_are_no_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(ceilings, "BINARY", tmp_path / "probe")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert ceilings.measure(1) == []


def test_features_by_the_words_of_the_kernel():
    there, absent = machine.features_in("processor\t: 0\nflags\t\t: fpu fma avx2 avx512f amx_tile amx_bf16\n")
    assert there == ["AVX2", "AMX BF16"]
    assert "AVX-512" in absent and "AMX INT8" in absent
