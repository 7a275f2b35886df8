#!/usr/bin/env python3
"""Makes a small language model with random weights, for tests and measurements: what it writes means nothing.

The folder has the Hugging Face layout of a Llama model (config, safetensors, byte-level BPE tokenizer, chat template),
so everything around a real model is exercised, in a few seconds and with no download. The same seed gives the same
weights everywhere. Needs numpy, safetensors and tokenizers; no torch, no MLX, no network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

NOTE = "random weights, made for tests: its text means nothing"
MAX_VOCABULARY = 448
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


class Sizes(NamedTuple):
    """Of a Llama model. `context`: the most tokens it reads, which costs no weights."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    mlp: int = 96
    context: int = 1024


#: About 119,000 parameters, half a megabyte; and 30 million, 120 MB.
SIZES = {"tiny": Sizes(), "30m": Sizes(hidden=512, layers=10, heads=8, key_value_heads=4, mlp=1408, context=4096)}

# Tools and calls are written as Hermes and Qwen write them.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    '{{ \'To call one, write <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n\' }}{% endif %}'
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{% set tool_call = call.function %}"
    '{{ \'<tool_call>\n{"name": "\' + tool_call.name + \'", "arguments": \' }}'
    "{{ tool_call.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What the tokenizer learns its merges from. Every byte is in the vocabulary, so any UTF-8 works all the same.
TEXT = """
A queue holds the work that services hand in, and a worker takes as much of it as its machine does well at once.
The small model answers every question with the same confidence, because its weights are random numbers.
Some words come often: the, and, with, from, that, this, will, when, where, which, there, their, would, could, about.
One request may be long and another short; they join the batch and leave it while the others go on decoding.
In the morning the river was quiet. By noon the wind had turned, and the boats came back to the harbour one by one.
def step(self): return [event for event in self.events if event.id not in self.cancelled]
Zürich, café, naïve, jalapeño, Ærø, Łódź, ελληνικά, русский текст, 日本語の文章, 中文句子, 한국어, עברית, العربية, 🙂🚀.
"""


def make_tiny_model(folder: Path, seed: int = 0, sizes: Sizes = SIZES["tiny"]) -> Path:
    """Writes the model into `folder`, made if need be, and returns it."""
    tokenizer = train_tokenizer(TEXT.splitlines(), MAX_VOCABULARY)
    config = llama_config(tokenizer, sizes) | {"torch_dtype": "float32", "impetus_note": NOTE}
    return write_model_folder(folder, tokenizer, _weights(tokenizer, seed, sizes), config)


def write_model_folder(
    folder: Path, tokenizer: Tokenizer, weights: dict[str, np.ndarray], config: dict[str, object]
) -> Path:
    """Writes all files of a model that mlx-lm loads and that ends its turns by itself. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TURN,
            "pad_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
        },
    )
    return folder


def train_tokenizer(lines: list[str], max_vocabulary: int) -> Tokenizer:
    """A byte-level BPE that reads any UTF-8 and has merges for what comes often in `lines`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, START_OF_TURN, END_OF_TURN)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def _weights(tokenizer: Tokenizer, seed: int, sizes: Sizes) -> dict[str, np.ndarray]:
    """Random float32 weights, large enough that the likeliest token leads by more than rounding."""
    rng = np.random.default_rng(seed)
    vocabulary, hidden = tokenizer.get_vocab_size(), sizes.hidden

    def matrix(rows: int, columns: int, gain: float = 1.5) -> np.ndarray:
        values: np.ndarray = rng.standard_normal((rows, columns)) * (gain / np.sqrt(columns))
        return values.astype(np.float32)

    head_size = hidden // sizes.heads
    weights = {
        "model.embed_tokens.weight": rng.standard_normal((vocabulary, hidden)).astype(np.float32),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(sizes.layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": np.ones(hidden, np.float32),
            f"{name}.post_attention_layernorm.weight": np.ones(hidden, np.float32),
            f"{name}.self_attn.q_proj.weight": matrix(sizes.heads * head_size, hidden),
            f"{name}.self_attn.k_proj.weight": matrix(sizes.key_value_heads * head_size, hidden),
            f"{name}.self_attn.v_proj.weight": matrix(sizes.key_value_heads * head_size, hidden),
            f"{name}.self_attn.o_proj.weight": matrix(hidden, sizes.heads * head_size),
            f"{name}.mlp.gate_proj.weight": matrix(sizes.mlp, hidden),
            f"{name}.mlp.up_proj.weight": matrix(sizes.mlp, hidden),
            f"{name}.mlp.down_proj.weight": matrix(hidden, sizes.mlp),
        }
    head = matrix(vocabulary, hidden, gain=2.0)
    for token, token_id in tokenizer.get_vocab().items():
        if len(token) == 1 and not token.isascii():
            # A byte that is no character alone. Made rarer, so that a reader sees words and not a page of U+FFFD.
            head[token_id] *= 0.4
    weights["lm_head.weight"] = head
    return weights


def llama_config(tokenizer: Tokenizer, sizes: Sizes = SIZES["tiny"]) -> dict[str, object]:
    """The `config.json` of a Llama model of these sizes."""
    vocabulary = tokenizer.get_vocab()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.hidden // sizes.heads,
        "intermediate_size": sizes.mlp,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "eos_token_id": [vocabulary[END_OF_TURN], vocabulary[END_OF_TEXT]],
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python scripts/models/make_tiny_model.py /tmp/tiny-model\n"
        "Then point a generation worker at that folder. Its results carry the note that the weights are random.",
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="the folder to write, made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="the most it reads (default: 1024; 30m: 4096)")
    arguments = parser.parse_args()
    sizes = SIZES[arguments.size]
    sizes = sizes._replace(context=arguments.context or sizes.context)
    folder = make_tiny_model(arguments.out_dir, arguments.seed, sizes)
    kilobytes = sum(file.stat().st_size for file in folder.iterdir()) // 1000
    print(f"Wrote a model to {folder} ({kilobytes} KB): {NOTE}.")


if __name__ == "__main__":
    main()
