# SPDX-License-Identifier: Apache-2.0
"""The zoo: public architectures at their real sizes with seeded random weights, and an input batch for each.

Runs in every peer's interpreter, so it uses only what transformers 4.51 and 5 share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

SEED = 0
Inputs = dict[str, torch.Tensor]


class Tagger(torch.nn.Module):
    """Embedding, two bidirectional LSTM layers, scores for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10_000, 512)
        self.lstm = torch.nn.LSTM(512, 512, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.scores = torch.nn.Linear(2 * 512, 1000)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.embedding(input_ids))
        return self.scores(hidden)


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batch, by a name that says both."""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], Inputs]
    batch: str


def _images(count: int) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": torch.randn(count, 3, 224, 224)}


def _tokens(rows: int, length: int, *, vocabulary: int = 30_522, mask: bool = True) -> Callable[[], Inputs]:
    def draw() -> Inputs:
        ids = torch.randint(0, vocabulary, (rows, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if mask else {"input_ids": ids}

    return draw


def _from_transformers(model: str, config: str) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)())


_resnet = _from_transformers("ResNetForImageClassification", "ResNetConfig")
_bert = _from_transformers("BertForSequenceClassification", "BertConfig")

CASES = {
    "resnet50": Case(_resnet, _images(16), "16 images"),
    "resnet50_b1": Case(_resnet, _images(1), "1 image"),
    "mobilenet": Case(_from_transformers("MobileNetV2ForImageClassification", "MobileNetV2Config"), _images(16), "16 images"),
    "convnext": Case(_from_transformers("ConvNextForImageClassification", "ConvNextConfig"), _images(8), "8 images"),
    "vit": Case(_from_transformers("ViTForImageClassification", "ViTConfig"), _images(8), "8 images"),
    "bert": Case(_bert, _tokens(8, 128), "8 × 128 tokens"),
    "bert_b1": Case(_bert, _tokens(1, 128), "1 × 128 tokens"),
    "bertqa": Case(_from_transformers("BertForQuestionAnswering", "BertConfig"), _tokens(4, 384), "4 × 384 tokens"),
    "lstm": Case(Tagger, _tokens(8, 64, vocabulary=10_000, mask=False), "8 × 64 tokens"),
}


def build(name: str) -> tuple[torch.nn.Module, Inputs]:
    """The same weights and the same inputs at every call in one interpreter."""
    torch.manual_seed(SEED)
    case = CASES[name]
    model = case.build().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # fresh ones hold 0 and 1, which would hide a wrong folding
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model, case.inputs()
