"""Measure the memory of the loss of a language model and its gradient, at once and in chunks (training.loss_chunk).

    python benchmarks/language_loss.py [--tokens 2048] [--vocabulary 50304] [--chunk 128]

The logits are bfloat16, as with `precision: bf16`. Each kind runs in a process of its own; its memory is that of the
process at its largest, less that with the logits alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

PROGRAM = """
import resource, sys
import torch
from workflow_lib.tasks.language import TokenCrossEntropy
tokens, vocabulary, chunk = map(int, sys.argv[1:])
def largest_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(count):
    logits = torch.full((1, count, vocabulary), 0.5, dtype=torch.bfloat16).requires_grad_()
    targets = torch.zeros(1, count, dtype=torch.int64)
    before = largest_mb()
    with torch.autocast("cpu", torch.bfloat16):
        loss = TokenCrossEntropy(chunk=chunk or None).loss(logits, targets)
    loss.backward()
    return largest_mb() - before
step(1)
print(step(tokens))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--chunk", type=int, default=128)
    given = parser.parse_args()
    logits = given.tokens * given.vocabulary * 2 / 2**20
    print(f"logits: {logits:.0f} MiB")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # freed memory goes back at once
    for kind, chunk in (("at once", 0), ("in chunks", given.chunk)):
        command = [sys.executable, "-c", PROGRAM, *map(str, (given.tokens, given.vocabulary, chunk))]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        more = float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{kind}: {more:.0f} MiB beside the logits, {more / logits:.2f} times as much; {seconds:.1f} s of CPU")


if __name__ == "__main__":
    main()
