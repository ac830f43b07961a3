# SPDX-License-Identifier: Apache-2.0
"""The zoo: public architectures at their real sizes with seeded random weights, and an input batch for each.

Runs in every peer's interpreter, so it uses only what transformers 4.51 and 5 share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.contest import dlrm
from benchmarks.contest.unet import UNet

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


class Clip(torch.nn.Module):
    """CLIP's scores for each image and text, and nothing else: what it returns beside them are no tensors, as tracing wants."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = transformers.CLIPModel(transformers.CLIPConfig())

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.clip(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return scores.logits_per_image, scores.logits_per_text


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batch, by a name that says both."""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], Inputs]
    batch: str


def _images(count: int, side: int = 224) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": torch.randn(count, 3, side, side)}


def _tokens(rows: int, length: int, *, vocabulary: int = 30_522, mask: bool = True) -> Callable[[], Inputs]:
    def draw() -> Inputs:
        ids = torch.randint(0, vocabulary, (rows, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if mask else {"input_ids": ids}

    return draw


def _decoder_tokens(rows: int, length: int, *, vocabulary: int) -> Inputs:
    """With their mask: without it transformers looks for packed sequences, by an operation that OpenVINO does not convert."""
    ids = torch.randint(0, vocabulary, (rows, length))
    return {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}


def _texts_and_images(texts: int, length: int, images: int) -> Inputs:
    """CLIP's texts end with its last token, by which it finds what stands for the text."""
    words = _tokens(texts, length, vocabulary=49_406)()
    words["input_ids"][:, -1] = 49_407
    return words | _images(images)()


def _from_transformers(model: str, config: str, **settings: Any) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**settings))


_resnet = _from_transformers("ResNetForImageClassification", "ResNetConfig")
_bert = _from_transformers("BertForSequenceClassification", "BertConfig")
_efficientnet_b0 = _from_transformers(
    "EfficientNetForImageClassification", "EfficientNetConfig",
    width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280, depthwise_padding=[],
)  # fmt: skip
_deberta_v3_base = _from_transformers(
    "DebertaV2ForSequenceClassification", "DebertaV2Config",
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, type_vocab_size=0,
    relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
)  # fmt: skip
_flan_t5_small = _from_transformers(
    "T5ForConditionalGeneration", "T5Config",
    d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False,
)  # fmt: skip
_whisper_base = _from_transformers(
    "WhisperForConditionalGeneration", "WhisperConfig",
    d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
    encoder_ffn_dim=2048, decoder_ffn_dim=2048, use_cache=False,
)  # fmt: skip

CASES = {
    "resnet50": Case(_resnet, _images(16), "16 images"),
    "resnet50_b1": Case(_resnet, _images(1), "1 image"),
    "mobilenet": Case(_from_transformers("MobileNetV2ForImageClassification", "MobileNetV2Config"), _images(16), "16 images"),
    "efficientnet": Case(_efficientnet_b0, _images(16), "16 images"),
    "convnext": Case(_from_transformers("ConvNextForImageClassification", "ConvNextConfig"), _images(8), "8 images"),
    "vit": Case(_from_transformers("ViTForImageClassification", "ViTConfig"), _images(8), "8 images"),
    "swin": Case(_from_transformers("SwinForImageClassification", "SwinConfig"), _images(4), "4 images"),
    "unet": Case(UNet, _images(2, 256), "2 images of 256 × 256"),
    "bert": Case(_bert, _tokens(8, 128), "8 × 128 tokens"),
    "bert_b1": Case(_bert, _tokens(1, 128), "1 × 128 tokens"),
    "bertqa": Case(_from_transformers("BertForQuestionAnswering", "BertConfig"), _tokens(4, 384), "4 × 384 tokens"),
    "distilbert": Case(
        _from_transformers("DistilBertForSequenceClassification", "DistilBertConfig"), _tokens(8, 128), "8 × 128 tokens"
    ),
    "deberta": Case(_deberta_v3_base, _tokens(2, 128, vocabulary=128_100), "2 × 128 tokens"),
    "t5": Case(
        _flan_t5_small,
        lambda: _tokens(8, 128, vocabulary=32_128)() | _decoder_tokens(8, 16, vocabulary=32_128),
        "8 × 128 tokens in, 8 × 16 out",
    ),
    "whisper": Case(
        _whisper_base,
        lambda: {"input_features": torch.randn(1, 80, 3000)} | _decoder_tokens(1, 16, vocabulary=51_865),
        "30 s of sound, 16 tokens",
    ),
    "wav2vec2": Case(
        _from_transformers("Wav2Vec2ForCTC", "Wav2Vec2Config"),
        lambda: {"input_values": torch.randn(2, 80_000)},
        "2 × 5 s of sound",
    ),
    "clip": Case(Clip, lambda: _texts_and_images(8, 16, 8), "8 images, 8 × 16 tokens"),
    "dlrm": Case(dlrm.DLRM, lambda: dlrm.draw(2048), "2048 rows"),
    "lstm": Case(Tagger, _tokens(8, 64, vocabulary=10_000, mask=False), "8 × 64 tokens"),
}


def build(name: str) -> tuple[torch.nn.Module, Inputs]:
    """The same weights and the same inputs at every call in one interpreter."""
    torch.manual_seed(SEED)
    case = CASES[name]
    model = case.build().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # fresh ones hold 0 and 1, which would hide a wrong folding
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model, case.inputs()
