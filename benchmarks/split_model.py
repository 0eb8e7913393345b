"""A model for the benchmarks of splits: dense, as large as asked for, and saying a text that a small draft can foretell.

Every token leads to one next token: the attention and the feed-forward are computed in full and add nothing, embeddings are one direction
each, and the output row of a token points along the direction of the one before it. A draft has the same table with a share of it wrong.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agentmesh.inference.models.gguf import read_header
from tests.fakes.tiny_gguf import TinyModel, write_tiny

STRENGTH = 4.0
FIRST_BYTE = 3  # token of byte 0: three special ones are before it
PRINTABLE = range(32, 127)
QUIET = ("attn_output.weight", "ffn_down.weight")  # without them a block adds nothing

# 730 MB: in each layer three tensors of 16 MiB, whose hash llama-server asks for, and six smaller ones, which it sends.
TARGET = TinyModel(name="split", context=2_048, layers=12, embedding=1_024, heads=8, kv_heads=2, feed_forward=4_096)
QUICK = TinyModel(name="split-quick", context=2_048, layers=4, embedding=1_024, heads=8, kv_heads=2, feed_forward=4_096)
DRAFT = TinyModel(name="split-draft", context=2_048, layers=2, embedding=320, heads=5, kv_heads=1, feed_forward=1_024)


@dataclass(frozen=True)
class Table:
    """Which byte follows which."""

    follows: Mapping[int, int]

    @classmethod
    def cycle(cls, seed: int = 4) -> Table:
        """All printable bytes, one after the other."""
        order = list(PRINTABLE)
        random.Random(seed).shuffle(order)
        return cls(dict(zip(order, [*order[1:], order[0]], strict=True)))

    def spoiled(self, share: float, seed: int = 5) -> Table:
        """The same, with that share of the bytes followed by another one."""
        wrong = random.Random(seed).sample(sorted(self.follows), round(share * len(self.follows)))
        return Table({**self.follows, **{byte: self.follows[self.follows[byte]] for byte in wrong}})


def write_model(path: Path, shape: TinyModel, table: Table) -> Path:
    """Write it to `path`."""
    write_tiny(path, shape)
    header = read_header(path)
    width = shape.embedding
    for tensor in header.tensors:
        if not tensor.name.endswith(QUIET) and tensor.name not in ("token_embd.weight", "output.weight"):
            continue
        values = np.memmap(
            path, np.float32, "r+", header.data_offset + tensor.offset, shape=(tensor.size_bytes // 4 // width, width)
        )
        values[:] = 0
        if tensor.name == "token_embd.weight":
            for token in range(len(values)):
                values[token, token] = 1.0
        elif tensor.name == "output.weight":
            for before in range(256):
                after = table.follows.get(before, PRINTABLE[0])
                values[FIRST_BYTE + after, FIRST_BYTE + before] = STRENGTH
        values.flush()
    return path
