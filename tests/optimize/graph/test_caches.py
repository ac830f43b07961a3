# SPDX-License-Identifier: Apache-2.0
"""Caches of transformers', which each call makes longer: captures are made from what they were before the call."""

import pytest
import torch
import transformers

from slipstream.optimize.graph import background, tier
from slipstream.optimize.graph.capturing.arguments import alike, grows
from slipstream.optimize.graph.capturing.shared import is_shared
from tests.optimize.graph.conftest import needs_native

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))


def gemma():
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8))


def bart():
    config = transformers.BartConfig(
        d_model=32, vocab_size=99, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def generated(model, **others):
    config = transformers.GenerationConfig(max_new_tokens=12, pad_token_id=0, bos_token_id=1, eos_token_id=None, **others)
    config.decoder_start_token_id = 2
    torch.manual_seed(3)
    return model.generate(torch.arange(5, 13)[None], generation_config=config)


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize("build", [llama, gemma, bart])
def test_graphs_of_decoders_generate_the_same_tokens(at_once, build, how):
    torch.manual_seed(0)
    model = build().eval()
    wanted = generated(model, **how)
    at_once("float32")
    for _ in range(6):
        assert torch.equal(generated(model, **how), wanted)
        background.wait()
    root = tier.root_call(model)
    assert root is not None and root.ways and root.account.calls


def test_a_cache_is_copied_with_its_layers():
    cache = transformers.DynamicCache()
    for layer in range(2):
        cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), layer)
    assert grows((1, cache)) and grows({"past": [cache]}) and not grows(torch.ones(2), {"mask": None})
    copied = alike({"past": cache})["past"]
    cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    assert type(copied) is type(cache)
    assert [copied.get_seq_length(layer) for layer in range(2)] == [3, 3]
    assert copied.layers[0].keys is not cache.layers[0].keys


def test_a_cache_that_the_model_holds_is_shared():
    model = llama()
    cache = transformers.DynamicCache()
    assert not is_shared(model, ((), {"past_key_values": cache}))
    model._cache = cache
    assert is_shared(model, ((), {"past_key_values": cache}))
