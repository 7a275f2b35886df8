"""Makes small random models of families that only code of their own runs, and records what their descriptions make of
texts.

transformers has Jina's BERT (v2) and NomicBERT with experts not at all, and their own code cannot be had everywhere. So
their arithmetic is written out below in torch, one text at a time, by the papers (arXiv:2310.19923, arXiv:2502.07972)
and by what another server makes of the same files (text-embeddings-inference: `jina.rs`, `nomic.rs`): a second opinion,
and no recording of the original. The models lie in tests/data/models/, their vectors in tests/data/described.npz. Run
it only to change them, in an environment of its own, because torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_described_vectors.py
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_reference_vectors import DATA, TEXTS  # type: ignore[import-not-found]  # beside this script

HIDDEN, WIDE, HEADS, LAYERS, LONGEST, EXPERTS, CHOSEN = 12, 20, 3, 2, 40, 4, 2
JINA: dict[str, Any] = {
    "architectures": ["JinaBertForMaskedLM"],
    "auto_map": {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
    },
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": LONGEST,
    "model_max_length": LONGEST,
    "model_type": "bert",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "type_vocab_size": 2,
}
NOMIC: dict[str, Any] = {
    "activation_function": "gelu",
    "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "causal": False,
    "expert_choice_router": False,
    "layer_norm_epsilon": 1e-05,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "model_type": "nomic_bert",
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_top_k": CHOSEN,
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": WIDE,
    "n_layer": 2 * LAYERS,
    "n_positions": LONGEST,
    "num_experts": EXPERTS,
    "num_shared_experts": 0,
    "pad_token_id": 1,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": True,
    "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_weights": True,
    "type_vocab_size": 1,
    "use_rms_norm": None,
}
PROMPTS = {"query": "search_query: ", "document": "search_document: "}


def main() -> None:
    from record_family_vectors import (  # type: ignore[import-not-found]  # beside this script
        _unigrams,
        _word_pieces,
    )

    recorded: dict[str, np.ndarray] = {}
    for name, config, tokenizer, prompts, run in (
        ("jina", JINA, _word_pieces(), {}, _jina),
        ("nomic-moe", NOMIC, _unigrams("<s>", "</s>"), PROMPTS, _nomic),
    ):
        folder = DATA / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        weights = _weights(name, len(tokenizer))
        _write(folder, config | {"vocab_size": len(tokenizer)}, tokenizer, prompts, weights)
        for prompt in (None, *prompts):
            rows = [tokenizer(prompts.get(prompt or "", "") + text, truncation=True)["input_ids"] for text in TEXTS]
            recorded[f"{name}/{prompt or 'plain'}"] = np.stack([_pooled(run(weights, row)) for row in rows])
            if prompt is None:
                recorded[f"{name}/ids"] = np.concatenate([np.array(row, np.int32) for row in rows])
                recorded[f"{name}/lengths"] = np.array(list(map(len, rows)))
    np.savez_compressed(DATA / "described.npz", **recorded)  # type: ignore[arg-type]  # numpy's stub takes a bool first
    print(f"wrote {len(recorded)} arrays to {DATA}", file=sys.stderr)


def _weights(name: str, words: int) -> dict[str, Any]:
    """Random, by the names that the published models have."""
    import torch

    torch.manual_seed(len(name))
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (words, HIDDEN)}

    def linear(place: str, out: int, inside: int, *, bias: bool = True) -> None:
        shapes[f"{place}.weight"] = (out, inside)
        if bias:
            shapes[f"{place}.bias"] = (out,)

    def norm(place: str) -> None:
        shapes.update({f"{place}.weight": (HIDDEN,), f"{place}.bias": (HIDDEN,)})

    if name == "jina":
        shapes["embeddings.token_type_embeddings.weight"] = (2, HIDDEN)
        norm("embeddings.LayerNorm")
        for index in range(LAYERS):
            layer = f"encoder.layer.{index}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
            norm(f"{layer}.attention.output.LayerNorm")
            linear(f"{layer}.mlp.gated_layers", 2 * WIDE, HIDDEN, bias=False)
            linear(f"{layer}.mlp.wo", HIDDEN, WIDE)
            norm(f"{layer}.mlp.layernorm")
    else:
        shapes["embeddings.token_type_embeddings.weight"] = (1, HIDDEN)
        norm("emb_ln")
        for index in range(2 * LAYERS):
            layer = f"encoder.layers.{index}"
            linear(f"{layer}.attn.Wqkv", 3 * HIDDEN, HIDDEN)
            linear(f"{layer}.attn.out_proj", HIDDEN, HIDDEN)
            if index % 2:
                linear(f"{layer}.mlp.router.layer", EXPERTS, HIDDEN, bias=False)
                shapes.update(
                    dict.fromkeys((f"{layer}.mlp.experts.mlp.{w}" for w in ("w1", "w2")), (EXPERTS * WIDE, HIDDEN))
                )
                shapes[f"{layer}.mlp.experts.bias"] = (HIDDEN,)
            else:
                linear(f"{layer}.mlp.fc1", WIDE, HIDDEN)
                linear(f"{layer}.mlp.fc2", HIDDEN, WIDE)
            norm(f"{layer}.norm1")
            norm(f"{layer}.norm2")
    # Larger than usual, that what tokens see counts, and each norm's scale about one.
    return {
        key: torch.randn(shape) * 0.4 + (("norm" in key.lower() or "_ln" in key) and key.endswith("weight"))
        for key, shape in shapes.items()
    }


def _write(
    folder: Path, config: dict[str, Any], tokenizer: Any, prompts: dict[str, str], weights: dict[str, Any]
) -> None:
    from safetensors.torch import save_file

    tokenizer.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    files = {
        "config.json": config,
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _pooled(hidden: Any) -> np.ndarray:
    """The mean, of length 1."""
    mean = hidden.mean(dim=0)
    pooled: np.ndarray = (mean / mean.norm()).numpy().astype(np.float32)
    return pooled


def _attended(q: Any, k: Any, v: Any, added: Any) -> Any:
    """(l, h) each; in each head a softmax of what queries and keys have in common, and of `added` (heads, l, l)."""
    import torch

    q, k, v = (x.reshape(len(x), HEADS, -1).transpose(0, 1) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + added, dim=-1)
    return (weights @ v).transpose(0, 1).reshape(q.shape[1], -1)


def _linear(weights: dict[str, Any], name: str, x: Any) -> Any:
    made = x @ weights[f"{name}.weight"].T
    return made + weights[f"{name}.bias"] if f"{name}.bias" in weights else made


def _normed(weights: dict[str, Any], name: str, x: Any, eps: float) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _slopes(heads: int) -> list[float]:
    """ALiBi's (arXiv:2108.12409): a falling geometric series, and between its members where there are more heads."""
    whole = 2 ** math.floor(math.log2(heads))
    series = [2.0 ** (-8 * (index + 1) / whole) for index in range(whole)]
    return series if whole == heads else series + _slopes(2 * whole)[0::2][: heads - whole]


def _jina(weights: dict[str, Any], row: list[int]) -> Any:
    import torch

    x = weights["embeddings.word_embeddings.weight"][row] + weights["embeddings.token_type_embeddings.weight"][0]
    x = _normed(weights, "embeddings.LayerNorm", x, 1e-12)
    places = torch.arange(len(row))
    apart = (places[None] - places[:, None]).abs()
    alibi = -torch.tensor(_slopes(HEADS))[:, None, None] * apart
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        q, k, v = (_linear(weights, f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = _linear(weights, f"{layer}.attention.output.dense", _attended(q, k, v, alibi))
        x = _normed(weights, f"{layer}.attention.output.LayerNorm", mixed + x, 1e-12)
        both = _linear(weights, f"{layer}.mlp.gated_layers", x)
        gated = torch.nn.functional.gelu(both[:, :WIDE]) * both[:, WIDE:]
        x = _normed(weights, f"{layer}.mlp.layernorm", x + _linear(weights, f"{layer}.mlp.wo", gated), 1e-12)
    return x


def _turned(x: Any) -> Any:
    import torch

    half = HIDDEN // HEADS // 2
    angles = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(half) / half)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    each = x.reshape(len(x), HEADS, -1)
    left, right = each[..., :half], each[..., half:]
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1).reshape(len(x), -1)


def _nomic(weights: dict[str, Any], row: list[int]) -> Any:
    import torch

    gelu = torch.nn.functional.gelu
    x = weights["embeddings.word_embeddings.weight"][row] + weights["embeddings.token_type_embeddings.weight"][0]
    x = _normed(weights, "emb_ln", x, 1e-5)
    for index in range(2 * LAYERS):
        layer = f"encoder.layers.{index}"
        q, k, v = _linear(weights, f"{layer}.attn.Wqkv", x).chunk(3, dim=-1)
        mixed = _attended(_turned(q), _turned(k), v, torch.zeros(1))
        x = _normed(weights, f"{layer}.norm1", x + _linear(weights, f"{layer}.attn.out_proj", mixed), 1e-5)
        if index % 2:
            shares, chosen = torch.softmax(_linear(weights, f"{layer}.mlp.router.layer", x), dim=-1).topk(CHOSEN)
            w1, w2 = (weights[f"{layer}.mlp.experts.mlp.{w}"].reshape(EXPERTS, WIDE, HIDDEN) for w in ("w1", "w2"))
            made = [
                sum(share * (gelu(token @ w1[expert].T) @ w2[expert]) for share, expert in zip(*both, strict=True))
                for token, *both in zip(x, shares, chosen, strict=True)
            ]
            wide = torch.stack(made) + weights[f"{layer}.mlp.experts.bias"]
        else:
            wide = _linear(weights, f"{layer}.mlp.fc2", gelu(_linear(weights, f"{layer}.mlp.fc1", x)))
        x = _normed(weights, f"{layer}.norm2", x + wide, 1e-5)
    return x


if __name__ == "__main__":
    main()
