# SPDX-License-Identifier: Apache-2.0
"""Tell kinds of images apart with a ResNet-50 of real size and seeded random weights: JSON lines on stdout.

A kind is known by its scores for one clean picture; random features suffice to find the nearest one.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification


def seeded_model(depth):
    """Batch norms get statistics that are not the trivial 0 and 1 of a fresh model."""
    config = ResNetConfig(depths=[3, 4, 6, 3] if depth == 50 else [1, 1, 1, 1], num_labels=1000)
    model = ResNetForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def seeded_images(kinds, count, size):
    """One clean picture (patches of colour) of each kind, then ``count`` noisy ones, kind by kind and round again."""
    patches = torch.randn(kinds, 3, 7, 7) * 2
    clean = torch.nn.functional.interpolate(patches, size=(size, size), mode="bilinear")
    again = clean[torch.arange(count) % kinds]
    return torch.cat([clean, again + torch.randn(again.shape) / 32])


def nearest(scores, references):
    """For each row the reference of highest cosine, once what all references have in common is taken off."""
    unit, shared = torch.nn.functional.normalize, references.mean(0)
    return (unit(scores - shared) @ unit(references - shared).T).argmax(1).tolist()


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--batch", type=int, default=16, help="images in one call of the model")
    flags.add_argument("--batches", type=int, default=3, help="different batches; the first shows each kind")
    flags.add_argument("--passes", type=int, default=3, help="how often they are classified")
    flags.add_argument("--depth", type=int, choices=[14, 50], default=50, help="layers; 50 is ResNet-50")
    flags.add_argument("--size", type=int, default=224, help="pixels on each side")
    flags.add_argument("--save", help="write the scores to this .npy file")
    args = flags.parse_args()
    torch.manual_seed(0)
    model = seeded_model(args.depth)
    images = seeded_images(args.batch, args.batch * (args.batches - 1), args.size)
    scores, seconds = [], []
    for batch in images.split(args.batch) * args.passes:
        begin = time.perf_counter()
        with torch.inference_mode():
            scores.append(model(pixel_values=batch).logits)
        seconds.append(time.perf_counter() - begin)
    last = torch.cat(scores)[-len(images) :]
    for number, label in enumerate(nearest(last, last[: args.batch])):
        print(json.dumps({"image": number, "is": number % args.batch, "label": label}))
    median = statistics.median(seconds)
    print(json.dumps({"first_s": seconds[0], "median_s": median, "total_s": sum(seconds)}))
    if args.save:
        np.save(args.save, last.float().numpy())


if __name__ == "__main__":
    main()
