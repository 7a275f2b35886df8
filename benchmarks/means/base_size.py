"""A model of the size of BERT-base, whose weights are seeded numbers: for rates, and for vectors to be held together.

Made of a small model's own files, so that its tokenizer, its names and its modules are the same.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, HIDDEN, WIDE, HEADS = 12, 768, 3072, 12
NAME = "bert-base-seeded"


def write_base_size(small: Path, folder: Path) -> Path:
    """Writes a model of 109 million parameters (440 MB), like the BERT in sentence-transformers' layout in `small`."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    whole = shutil.copytree(
        small, folder / NAME, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx", "*.h5")
    )
    config = json.loads((whole / "config.json").read_text())
    widths = {config["hidden_size"]: HIDDEN, config["intermediate_size"]: WIDE}
    random, tensors = np.random.default_rng(1), {}
    with safe_open(str(small / "model.safetensors"), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            shape = [widths.get(size, size) for size in file.get_slice(name).get_shape()]
            for each in _in_all_layers(name):
                if name.endswith("position_ids"):
                    continue
                made = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                tensors[each] = made + np.float32(1) if name.endswith("LayerNorm.weight") else made
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    (whole / "config.json").write_text(json.dumps(config | sizes))
    pooling = whole / "1_Pooling" / "config.json"
    content = json.loads(pooling.read_text())
    width = next(key for key in ("word_embedding_dimension", "embedding_dimension") if key in content)
    pooling.write_text(json.dumps(content | {width: HIDDEN}))
    return whole


def _in_all_layers(name: str) -> list[str]:
    """The tensor of the first layer in each; that of another layer in none."""
    head, found, rest = name.partition("layer.")
    if not found:
        return [name]
    number, _, tail = rest.partition(".")
    return [f"{head}layer.{layer}.{tail}" for layer in range(LAYERS)] if number == "0" else []
