"""Makes small random models with sparse heads, and records what they make of texts.

The models lie in tests/data/sparse/, in the layouts that people publish, and their weights for every token of the
vocabulary in tests/data/sparse.npz. Those of SPLADE models are what sentence-transformers' SparseEncoder makes. For the
lexical weights of bge-m3 it has no module: there the formula of FlagEmbedding (`BGEM3FlagModel.encode`,
`return_sparse`) is written out anew below, in torch on transformers' encoder. Run it only to add a family, in an
environment of its own, because torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_sparse_vectors.py [NAME ...]

Without names it makes all of them anew, with other vocabularies: the trainers of tokenizers are not deterministic.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_family_vectors import SIZES  # type: ignore[import-not-found]  # beside this script
from record_reference_vectors import DATA, TEXTS  # type: ignore[import-not-found]  # beside this script

SMALL = SIZES | {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
_OLD = "sentence_transformers.sparse_encoder.models."


class Splade(NamedTuple):
    """One model: its configuration, its tokenizer and its pooling."""

    model_type: str
    config: dict[str, Any]
    tokenizer: Any
    pooling: dict[str, str]
    old: bool = False
    """Whether `modules.json` names its modules as sentence-transformers did before 5.4."""
    prompts: dict[str, str] | None = None
    most: int | None = None
    """Of weights that are kept."""


def models() -> dict[str, Splade | None]:
    from record_family_vectors import _byte_pairs, _word_pieces

    rooted = SMALL | {"max_position_embeddings": 42, "type_vocab_size": 1}
    return {
        "bert": Splade("bert", SMALL, _word_pieces(), {}, prompts={"query": "a question about foxes: "}),
        "distilbert": Splade(
            "distilbert",
            {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 40},
            _word_pieces(),
            {"activation_function": "log1p_relu"},
            old=True,
        ),
        "roberta": Splade("roberta", rooted, _byte_pairs("<s>", "</s>"), {"pooling_strategy": "sum"}, most=20),
        "modernbert": Splade(
            "modernbert", SMALL | {"num_hidden_layers": 3, "local_attention": 8}, _byte_pairs("[CLS]", "[SEP]"), {}
        ),
        "bge-m3": None,
    }


def main() -> None:
    recorded = dict(np.load(DATA / "sparse.npz")) if sys.argv[1:] else {}
    for name, model in models().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = DATA / "sparse" / name
        shutil.rmtree(folder, ignore_errors=True)
        if model is None:
            _make_lexical(folder)
            _record_lexical(recorded, name, folder)
        else:
            _make(folder, model)
            _record(recorded, name, folder, tuple(model.prompts or ()))
    np.savez_compressed(DATA / "sparse.npz", **recorded)
    print(f"wrote {len(recorded)} arrays to {DATA}", file=sys.stderr)


def _shaken(model: Any) -> Any:
    """The usual beginnings, zero biases and unit scales, would hide a bias or a scale that is never applied."""
    import torch  # see above

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def _make(folder: Path, splade: Splade) -> None:
    import torch
    from sentence_transformers import SparseEncoder  # type: ignore[import-not-found]  # see above
    from sentence_transformers.models import Transformer  # type: ignore[import-not-found]  # see above
    from sentence_transformers.sparse_encoder.models import (  # type: ignore[import-not-found]  # see above
        SpladePooling,
    )
    from transformers import AutoConfig, AutoModelForMaskedLM

    tokenizer = splade.tokenizer
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos", "cls", "sep")}
    config = AutoConfig.for_model(splade.model_type, **splade.config, **ids, vocab_size=len(tokenizer))
    torch.manual_seed(len(splade.model_type))
    with tempfile.TemporaryDirectory() as start:
        _shaken(AutoModelForMaskedLM.from_config(config)).save_pretrained(start)
        tokenizer.save_pretrained(start)
        pooling = SpladePooling(**splade.pooling)
        modules = [Transformer(start, transformer_task="fill-mask"), pooling]
        whole = SparseEncoder(modules=modules, prompts=splade.prompts, max_active_dims=splade.most)
        whole.save(str(folder), create_model_card=False)
    if splade.old:
        kinds = [("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling")]
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": _OLD + kind}
            for index, (path, kind) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(listed, indent=2))
        pooled = {"pooling_strategy": "max", "word_embedding_dimension": len(tokenizer), **splade.pooling}
        (folder / "1_SpladePooling" / "config.json").write_text(json.dumps(pooled, indent=2))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": false}\n')


def _record(recorded: dict[str, np.ndarray], name: str, folder: Path, prompts: tuple[str, ...]) -> None:
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder), device="cpu")
    for prompt in (None, *prompts):
        made = model.encode(list(TEXTS), prompt_name=prompt, batch_size=5, convert_to_sparse_tensor=False)
        recorded[f"{name}/{prompt or 'plain'}"] = made.numpy()


def _make_lexical(folder: Path) -> None:
    """bge-m3: XLM-RoBERTa with pooling, and beside it a layer that weighs tokens."""
    import torch
    from record_reranker_scores import _unigrams  # type: ignore[import-not-found]  # beside this script
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    tokenizer = _unigrams()
    tokenizer.add_special_tokens({"cls_token": "<s>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"})
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    sizes = SMALL | {"max_position_embeddings": 42, "type_vocab_size": 1}
    config = AutoConfig.for_model("xlm-roberta", **sizes, **ids, vocab_size=len(tokenizer))
    torch.manual_seed(3)
    with tempfile.TemporaryDirectory() as start:
        _shaken(AutoModel.from_config(config)).save_pretrained(start)
        tokenizer.save_pretrained(start)
        whole = SentenceTransformer(modules=[Transformer(start), Pooling(8, "cls"), Normalize()])
        whole.save(str(folder), create_model_card=False)
    head = _shaken(torch.nn.Linear(8, 1))
    save_file(
        {name: tensor.detach() for name, tensor in head.state_dict().items()}, folder / "sparse_linear.safetensors"
    )


def _record_lexical(recorded: dict[str, np.ndarray], name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    recorded[f"{name}/dense"] = model.encode(list(TEXTS), batch_size=5)
    head = load_file(folder / "sparse_linear.safetensors")
    left_out = {getattr(model.tokenizer, f"{kind}_token_id") for kind in ("cls", "eos", "pad", "unk")}
    weights = np.zeros((len(TEXTS), len(model.tokenizer)), np.float32)
    for row, text in zip(weights, TEXTS, strict=True):
        features = model.tokenizer([text], return_tensors="pt", truncation=True)
        with torch.no_grad():
            hidden = model[0].auto_model(**features).last_hidden_state[0]
            of_tokens = torch.relu(hidden @ head["weight"].T + head["bias"])[:, 0]
        for token, weight in zip(features["input_ids"][0].tolist(), of_tokens.tolist(), strict=True):
            if token not in left_out:
                row[token] = max(row[token], weight)
    recorded[f"{name}/plain"] = weights


if __name__ == "__main__":
    main()
