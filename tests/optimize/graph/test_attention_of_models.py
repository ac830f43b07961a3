# SPDX-License-Identifier: Apache-2.0
"""Attention that transformers' models write out themselves: their `eager` form, DeBERTa's relative positions, T5's bias."""

import pytest
import torch
import transformers

from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.test_written_out_attention import lowered, names_in
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native

_SMALL = {"vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def deberta(**settings):
    return transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            **_SMALL, relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm", position_biased_input=False,
            type_vocab_size=0, **{"share_att_key": True, "pos_att_type": ["p2c", "c2p"], **settings},
        )
    )  # fmt: skip


def bert():
    return transformers.BertModel(transformers.BertConfig(**_SMALL, attn_implementation="eager"))


class GPT2(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt2 = transformers.GPT2Model(
            transformers.GPT2Config(
                vocab_size=90, n_embd=64, n_layer=2, n_head=2, use_cache=False, attn_implementation="eager", bos_token_id=1,
                eos_token_id=1,
            )
        )  # fmt: skip

    def forward(self, ids, mask):
        return self.gpt2(input_ids=ids, attention_mask=mask)


def opt():
    return transformers.OPTModel(
        transformers.OPTConfig(
            vocab_size=90, hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=64,
            use_cache=False, attn_implementation="eager",
        )
    )  # fmt: skip


class T5(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.t5 = transformers.T5Model(
            transformers.T5Config(
                vocab_size=90, d_model=64, d_kv=32, d_ff=64, num_layers=2, num_heads=2, use_cache=False,
                attn_implementation="eager",
            )
        )  # fmt: skip

    def forward(self, ids, mask):
        return self.t5(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :7], decoder_attention_mask=mask[:, :7])


MODELS = {
    "deberta": (deberta, 2), "deberta, own projections": (lambda: deberta(share_att_key=False), 2),
    "deberta, one term": (lambda: deberta(pos_att_type=["c2p"]), 2), "bert": (bert, 2), "gpt2": (GPT2, 2), "opt": (opt, 2),
    "t5": (T5, 6),
}  # fmt: skip


def tokens(length, rows=2):
    torch.manual_seed(length)
    ids, mask = torch.randint(0, 90, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return ids, mask


def answer(model, given):
    with torch.inference_mode():
        return model(*given)[0]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in MODELS), ("deberta", "bfloat16"), ("gpt2", "bfloat16"), ("t5", "bfloat16")],
)
def test_it_is_the_operator(name, dtype):
    torch.manual_seed(1)
    make, count = MODELS[name]
    model, given = make().eval(), tokens(27)
    _, results, names = lowered(model, given, dtype)
    assert (names.count("attention"), names.count("softmax")) == (count, 0)
    assert not {"bmm", "gather", "repeat", "masked_fill"} & set(names)
    assert names.count("relative_scores") == (count if "deberta" in name else 0)
    assert error(results[0], answer(model, given)) < LIMIT[dtype]


def test_tables_that_layers_share_are_one():
    program, _, names = lowered(deberta().eval(), tokens(27), "bfloat16")
    assert names.count("invert") == 1
    indexes = [node.args[3] for node in program.fast.graph.nodes if getattr(node.target, "kind", "") == "relative_scores"]
    assert len(indexes) == 2 and indexes[0] is indexes[1]


def test_who_is_given_the_weights_gets_them():
    model, (ids, mask) = bert().eval(), tokens(11)
    with torch.inference_mode():
        wanted = model(ids, mask, output_attentions=True).attentions
    model.config.output_attentions = True
    _, results, names = lowered(model, (ids, mask), "float32")
    assert names.count("softmax") == 2
    found = [result for result in results if result.shape == wanted[0].shape]
    for got, expected in zip(found, wanted, strict=True):
        assert error(got, expected) < LIMIT["float32"]


def test_lengths_of_deberta_may_vary(at_once):
    model = deberta().eval()
    inputs = [tokens(length) for length in (9, 14, 40, 12, 33)]
    expected = [answer(model, given) for given in inputs]
    at_once("float32")
    for given in inputs[:2]:
        root = settle(model, *given)
    assert root.ways and all("softmax" not in names_in(way.program.lowered.fast.graph) for way in root.ways)
    for given, wanted in zip(inputs, expected, strict=True):
        assert error(answer(model, given), wanted) < LIMIT["float32"]
    assert all(way.program.broken is None for way in root.ways)
