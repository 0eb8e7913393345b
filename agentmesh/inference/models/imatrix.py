"""Reading how often each expert was chosen from an importance matrix (llama.cpp's tools/imatrix, its GGUF form).

There a tensor `NAME.counts` has, for a tensor of experts, one float an expert: the tokens that were routed to it. The three tensors of a
layer have the same counts. The older form (.dat) has one count a tensor and cannot rank experts.
"""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path
from typing import Final

from agentmesh.inference.logic.expert_tensors import MAX_EXPERTS, ExpertModel
from agentmesh.inference.logic.gguf_header import Header, Tensor
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.gguf import read_header

_COUNTS: Final = re.compile(r"blk\.(\d{1,4})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")
_F32: Final = 0


def read_counts(path: Path, model: ExpertModel) -> dict[int, tuple[float, ...]]:
    """Layer -> how often each expert was chosen, of all layers of the model that the file has.

    Raises:
        ModelFileUnusable: it is no importance matrix, of the older form, of another model, or damaged.
    """
    header = _imatrix_header(path)
    found: dict[int, Tensor] = {}
    for tensor in header.tensors:
        match = _COUNTS.fullmatch(tensor.name)
        if match is not None:
            found.setdefault(int(match[1]), tensor)
    if not found:
        raise ModelFileUnusable(f"{path} has no counts of experts: it was made with a model that has none.")
    if not set(found) <= set(model.layers):
        raise ModelFileUnusable(f"{path} was made with another model: it has experts in layer {max(found)}.")
    return {layer: _values(path, header, tensor, model.expert_count) for layer, tensor in sorted(found.items())}


def _imatrix_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            begins_right = file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelFileUnusable(f"{path} cannot be read: {error.strerror}.") from error
    if not begins_right:
        raise ModelFileUnusable(
            f"{path} is not an importance matrix in GGUF form. The older form (.dat) does not count experts; "
            "make one with llama-imatrix, its output named *.gguf."
        )
    header = read_header(path)
    if header.text("general.type") != "imatrix":
        raise ModelFileUnusable(f"{path} is a GGUF file, but no importance matrix.")
    return header


def _values(path: Path, header: Header, tensor: Tensor, experts: int) -> tuple[float, ...]:
    if tensor.elements != experts or tensor.elements > MAX_EXPERTS or tensor.type_number != _F32:
        raise ModelFileUnusable(
            f"{path} counts {tensor.elements} experts where the model has {experts}: it was made with another model."
        )
    with path.open("rb") as file:
        data = os.pread(file.fileno(), tensor.size_bytes, header.data_offset + tensor.offset)
    if len(data) != tensor.size_bytes:
        raise ModelFileUnusable(f"{path} is cut short.")
    values = struct.unpack(f"<{experts}f", data)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ModelFileUnusable(f"{path} is damaged: a count in '{tensor.name}' is no number of tokens.")
    return values
