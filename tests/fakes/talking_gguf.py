"""A tiny model that real engines load and that says what it was made to say, then stops: agents need an answer that ends.

Its weights are a table, not noise: the attention and the feed-forward add nothing, every token's embedding is one of a few
directions, and the output row of each token of a text points along the direction of the one before it. So whatever the prompt,
the answer is the text; and the last token of the prompt, which the chat template chooses, decides which text:

- a request that offers the tool `calls[i].tool`, and in which the user said the words `calls[i].when`, gets a call of it;
- any other, and one that brings a tool's result, gets `answer`.

write_talking(path, answer="A mesh is …", calls=[Call("bash", {"command": "true"})])
python -m tests.fakes.talking_gguf PATH [--context 131072] [--answer TEXT] [--call TOOL JSON]...
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ANSWER = "A mesh joins machines as equals: each serves models, and any may ask any other."
CONTEXT_TOKENS = 131_072
STRENGTH = 4.0  # times √width, so 45 and more, is how far the next token is ahead: sampling finds no other
HEADS = 4

# Hermes' form of tools, which llama-server knows how to read back. Every byte is a token, and agents send 80,000 of them:
# of tools only the names are shown, of long messages the beginning.
_TEMPLATE_HEAD = (
    "{%- if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}</tools>\n{% endif -%}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}<tool_response>{{ (message.content | string)[:2000] }}</tool_response>\n"
    "{%- else %}<{{ message.role }}>{{ ((message.content or '') | string)[:2000] }}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}</s>\n"
    "{%- endif %}{%- endfor -%}"
)


@dataclass(frozen=True)
class Call:
    """The call that the model makes where a tool of that name is offered and the user said the words `when`.

    llama-server allows only what the tool's schema does: `arguments` need all required ones, in the schema's order.
    """

    tool: str
    arguments: Mapping[str, Any]
    when: str = ""

    @property
    def text(self) -> str:
        return "<tool_call>\n" + json.dumps({"name": self.tool, "arguments": self.arguments}) + "\n</tool_call>"


def write_talking(
    path: Path,
    answer: str = ANSWER,
    calls: Sequence[Call] = (),
    *,
    context: int = CONTEXT_TOKENS,
    name: str = "talking",
) -> Path:
    """Write the model to `path`. Of several calls that it could make, it makes the first one of `calls`.

    `context` is what its file claims, in tokens; every byte of a prompt is one.
    """
    texts = [answer, *(call.text for call in calls)]
    tokens = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    start_of_text = [len(tokens) + index for index in range(len(texts))]
    tokens += [(f"<say{index}>", gguf.TokenType.CONTROL) for index in range(len(texts))]
    follows: list[tuple[int, int]] = []  # (a token, the one after it)
    taken = {text for text, _ in tokens}
    for start, text in zip(start_of_text, texts, strict=True):
        before = start
        for piece in _pieces(text, taken):
            follows.append((before, len(tokens)))
            before = len(tokens)
            tokens.append((piece, gguf.TokenType.NORMAL))
        follows.append((before, 2))
    _write(path, name, context, tokens, follows, start_of_text[0], _template(calls))
    return path


def _pieces(text: str, taken: set[str]) -> list[str]:
    """The text in words, each different from every other token: a vocabulary has no text twice."""
    pieces: list[str] = []
    pending = ""
    for word in re.findall(r"\s*\S+|\s+$", text):
        pending += word.replace(" ", "▁")
        if pending not in taken:
            taken.add(pending)
            pieces.append(pending)
            pending = ""
    while pending in taken:  # the last words were there before: they are one token with those ahead of them
        pending = pieces.pop() + pending
    if pending:
        taken.add(pending)
        pieces.append(pending)
    return pieces


def _template(calls: Sequence[Call]) -> str:
    """The chat template: what has been said, then the token from which the wanted text follows."""
    lines = [_TEMPLATE_HEAD, "{%- set chosen = namespace(start='<say0>', heard='') -%}"]
    if calls:
        lines.append("{%- for message in messages -%}{%- if message.role == 'user' -%}")
        lines.append("{%- set chosen.heard = chosen.heard + (message.content | string) -%}{%- endif -%}{%- endfor -%}")
        lines.append("{%- if messages[-1].role != 'tool' -%}")
        for index, call in reversed(list(enumerate(calls, start=1))):
            lines.append(f"{{%- for tool in tools or [] -%}}{{%- if tool.function.name == '{call.tool}'")
            lines.append(f" and '{call.when}' in chosen.heard -%}}")
            lines.append(f"{{%- set chosen.start = '<say{index}>' -%}}{{%- endif -%}}{{%- endfor -%}}")
        lines.append("{%- endif -%}")
    lines.append("{%- if add_generation_prompt %}<assistant>{{ chosen.start }}{% endif %}")
    return "".join(lines)


def _write(
    path: Path,
    name: str,
    context: int,
    tokens: Sequence[tuple[str, gguf.TokenType]],
    follows: Sequence[tuple[int, int]],
    default_start: int,
    template: str,
) -> None:
    # One direction for each token that something follows; every other token leads where `default_start` does.
    direction = {token: index for index, (token, _) in enumerate(follows)}
    width = max(128, -(-len(direction) // 64) * 64)
    embedding = np.zeros((len(tokens), width), dtype=np.float32)
    for token in range(len(tokens)):
        embedding[token, direction.get(token, direction[default_start])] = 1.0
    output = np.zeros_like(embedding)
    for before, after in follows:
        output[after, direction[before]] = STRENGTH
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)
    ones = np.ones(width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width // HEADS, width),
        "attn_v": (width // HEADS, width),
        "attn_output": (width, width),
        "ffn_gate": (32, width),
        "ffn_up": (32, width),
        "ffn_down": (width, 32),
    }
    for tensor in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{tensor}.weight", ones)
    for tensor, shape in shapes.items():
        writer.add_tensor(f"blk.0.{tensor}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS)
    parser.add_argument("--answer", default=ANSWER)
    parser.add_argument("--call", nargs=2, action="append", default=[], metavar=("TOOL", "JSON"))
    chosen = parser.parse_args()
    calls = [Call(tool, json.loads(arguments)) for tool, arguments in chosen.call]
    print(write_talking(chosen.path, chosen.answer, calls, context=chosen.context))


if __name__ == "__main__":
    main()
