# SPDX-License-Identifier: Apache-2.0
"""Whole models, of transformers' families and hand-made: nothing but the speed may tell that the engine is on."""

import io
import pickle

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16,
    "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip


def tokens(*shape):
    return torch.randint(3, 99, shape)


def words():
    return {"input_ids": tokens(2, 12)}


def image():
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


# name: (class, configuration class, its arguments, input)
FAMILIES = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, words),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TEXT, words),
    "distilbert": (
        "DistilBertForQuestionAnswering", "DistilBertConfig",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, words,
    ),
    "electra": ("ElectraModel", "ElectraConfig", {**TEXT, "embedding_size": 16}, words),
    "albert": ("AlbertModel", "AlbertConfig", {**TEXT, "embedding_size": 16}, words),
    "deberta": ("DebertaV2Model", "DebertaV2Config", {**TEXT, "relative_attention": True}, words),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4}, words),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}, words),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**TEXT, "num_key_value_heads": 2}, words),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "word_embed_proj_dim": 32}, words,
    ),
    "t5": ("T5Model", "T5Config", T5, lambda: {**words(), "decoder_input_ids": tokens(2, 5)}),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig", WHISPER,
        lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(2, 5)},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, lambda: {"input_values": torch.randn(2, 800)}),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, image),
    "deit": ("DeiTModel", "DeiTConfig", IMAGE, image),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}, image,
    ),
    "mobilenet": ("MobileNetV2Model", "MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32}, image),
    "convnext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 2, 1]}, image),
    "swin": ("SwinModel", "SwinConfig", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2,
                                         "image_size": 32, "patch_size": 4}, image),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                  {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 16}, image),
}  # fmt: skip


def of_transformers(name):
    model_class, config_class, values, make_input = FAMILIES[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    return model, make_input()


class Positions(nn.Module):
    """An early network: a `.view` right behind a convolution, pooling, a keyword, a dictionary for an answer."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2), nn.Linear(6 * 14 * 14, 10)

    def forward(self, *, picture):
        y = self.conv(picture)
        flat = y.view(y.size(0), -1).sum()
        return {"logits": self.fc(input=self.pool(y).view(-1, 6 * 14 * 14)), "flat": flat, "map": y}


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop = nn.Embedding(50, 16), nn.Dropout(0.5)
        self.lstm, self.fc = nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True, dropout=0.2), nn.Linear(48, 5)

    def forward(self, ids):
        y, (h, c) = self.lstm(self.drop(self.embed(ids)))
        return self.fc(y), h, c


def hand_made(name):
    if name == "positions":
        return Positions(), {"picture": torch.randn(2, 3, 32, 32)}
    if name == "tagger":
        return Tagger(), {"ids": torch.randint(0, 50, (3, 9))}
    if name == "encoder":
        return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), {"src": torch.randn(2, 9, 32)}
    if name == "decoder":
        layer = nn.TransformerDecoderLayer(32, 4, 64)
        return layer, {"tgt": torch.randn(5, 2, 32), "memory": torch.randn(9, 2, 32)}
    if name == "attention":
        x = torch.randn(5, 2, 32)
        return nn.MultiheadAttention(32, 4), {"query": x, "key": x, "value": x}
    raise AssertionError(name)


HAND_MADE = ["positions", "tagger", "encoder", "decoder", "attention"]


def build(name):
    torch.manual_seed(0)
    model, inputs = of_transformers(name) if name in FAMILIES else hand_made(name)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
    return model.eval(), inputs


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, list | tuple) or not isinstance(value, str | int | float | bool | None):
        return [y for part in value for y in tensors(part)] if hasattr(value, "__iter__") else []
    return []


def portrait(model):
    """Everything of a model that must stay: names, classes, state, slots of the instances."""
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    slots = [sorted(set(vars(module)) - {"_compiled_call_impl"}) for module in model.modules()]
    return state.getvalue(), [type(module) for module in model.modules()], [n for n, _ in model.named_parameters()], slots


def pickled_or_none(model):
    """Some models cannot be pickled by themselves: they hold local functions or parametrizations."""
    try:
        return pickle.dumps(model)
    except (AttributeError, RuntimeError):
        return None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*FAMILIES, *HAND_MADE])
@torch.no_grad()
def test_a_model_answers_as_before(engine, name, dtype):
    model, inputs = build(name)
    torch.manual_seed(1)
    wanted = model(**inputs)
    before, random_state, pickled = portrait(model), torch.get_rng_state(), pickled_or_none(model)
    engine(dtype)
    for _ in range(2):
        torch.manual_seed(1)
        got = model(**inputs)
        assert type(got) is type(wanted)
        for y, w in zip(tensors(got), tensors(wanted), strict=True):
            assert (y.dtype, y.shape, y.stride()) == (w.dtype, w.shape, w.stride())
            assert error(y, w) < 4 * LIMIT[dtype]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert portrait(model) == before
    assert not any("slipstream failed" in reason for reason in decisions().values()), decisions()
    if pickled is not None:
        assert portrait(pickle.loads(pickle.dumps(model))) == portrait(pickle.loads(pickled))


@pytest.mark.parametrize("name", ["bert", "resnet", "tagger", "positions"])
def test_training_is_untouched(engine, name):
    def gradients(model, inputs):
        model.train()
        torch.manual_seed(2)
        loss = sum(y.float().pow(2).sum() for y in tensors(model(**inputs)))
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    wanted = gradients(*build(name))
    engine("bfloat16")
    model, inputs = build(name)
    with torch.no_grad():
        model(**inputs)
    got = gradients(model, inputs)
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@torch.no_grad()
def test_generation_in_float32_gives_the_same_tokens(engine, name):
    model_class = {"t5": "T5ForConditionalGeneration"}.get(name, FAMILIES[name][0])
    torch.manual_seed(0)
    values = {**FAMILIES[name][2], "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = getattr(transformers, model_class)(getattr(transformers, FAMILIES[name][1])(**values)).eval()
    ids = tokens(2, 6)

    def all_ways():
        rest = {"max_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
        torch.manual_seed(3)
        sampled = model.generate(ids, do_sample=True, **rest)
        return [model.generate(ids, do_sample=False, **rest), model.generate(ids, num_beams=3, **rest), sampled]

    wanted = all_ways()
    engine("float32")
    assert all(torch.equal(got, want) for got, want in zip(all_ways(), wanted, strict=True))
