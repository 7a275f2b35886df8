"""Records what sentence-transformers makes of the small models in tests/data/models/ when their files say other things.

The vectors lie in tests/data/variants.npz, with the cases. Run it only to add one, in an environment of its own, for
torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_variants.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_reference_vectors import (  # type: ignore[import-not-found]  # beside this script
    DATA,
    TEXTS,
)

_YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
_LLAMA3: dict[str, Any] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SHORT: dict[str, Any] = {"original_max_position_embeddings": 10}
#: How a config.json may scale its angles: by the small model, and each case's keys, of which None takes one away.
_ANGLES: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("qwen3", {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": _YARN | _SHORT}),
    "yarn in full": (
        "mistral",
        {
            "rope_parameters": _YARN
            | _SHORT
            | {"attention_factor": 0.7, "beta_fast": 2, "beta_slow": 0.5, "truncate": False}
        },
    ),
    "yarn of mscale": ("eurobert", {"rope_parameters": _YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}),
    "yarn stated outside": ("nomic", {"rope_parameters": _YARN | {"original_max_position_embeddings": 30}, **_SHORT}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3 | {"rope_theta": 1e4, "original_max_position_embeddings": 64}}),
    "linear": ("gte", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "linear, some layers": ("gemma", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "linear, all layers": (
        "modernbert",
        {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "yarn by layers": (
        "modernbert",
        {"rope_parameters": {"full_attention": _YARN | _SHORT, "sliding_attention": _LLAMA3}},
    ),
    "dynamic": (
        "qwen2",
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ),
}


_LONGER: dict[str, Any] = {"max_seq_length": 300}
#: What a model's files may say otherwise: by the small model, and the file and its keys.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (model, "config.json", keys) for name, (model, keys) in _ANGLES.items()},
    "seeing what comes after": ("qwen2", "config.json", {"is_causal": False}),
    "longer, by distances": ("deberta", "sentence_bert_config.json", _LONGER),
    "longer, by angles": ("modernbert", "sentence_bert_config.json", _LONGER),
    "without marks at the ends": ("qwen2", "tokenizer.json", {"post_processor": None}),
}


def main() -> None:
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]  # see above

    found: dict[str, np.ndarray] = {"cases": np.array(json.dumps(VARIANTS))}
    for name, (model, changed, keys) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as copied:
            folder = shutil.copytree(DATA / "models" / model, Path(copied) / "model")
            file = folder / changed
            content = json.loads(file.read_text()) | keys
            file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
            found[name] = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS), batch_size=5)
    np.savez_compressed(DATA / "variants.npz", **found)  # type: ignore[arg-type]  # numpy's stub takes a bool first
    print(f"wrote {len(found)} arrays to {DATA}", file=sys.stderr)


if __name__ == "__main__":
    main()
