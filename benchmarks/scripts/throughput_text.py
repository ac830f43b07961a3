# SPDX-License-Identifier: Apache-2.0
"""How many sequences a second does BERT-base classify? Plain transformers; prints one throughput line a second."""

import argparse
import time

import torch
from transformers import BertConfig, BertForSequenceClassification


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--seconds", type=float, default=8, help="how long, after one call that is not counted")
    flags.add_argument("--batch", type=int, default=1, help="sequences in one call of the model")
    flags.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    flags.add_argument("--layers", type=int, default=12, help="encoder layers; 12 is BERT-base")
    args = flags.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=args.layers)).eval()
    ids = torch.randint(0, model.config.vocab_size, (args.batch, args.length))
    with torch.inference_mode():
        model(input_ids=ids)
        begin = said = time.perf_counter()
        done = 0
        while (now := time.perf_counter()) - begin < args.seconds:
            model(input_ids=ids)
            done += args.batch
            if now - said >= 1:
                said = now
                print(f"throughput: {done / (now - begin):.2f} sequences/s", flush=True)
        print(f"throughput: {done / (time.perf_counter() - begin):.2f} sequences/s", flush=True)


if __name__ == "__main__":
    main()
