"""Kinds of models that people use and that are not served: each is refused by a sentence that names the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.embedding.folder.config import read_config
from impetus_backends.errors import ModelError

from ..conftest import small_model
from ..copies import changed

if TYPE_CHECKING:
    from pathlib import Path

TRANSFORMER = ("", "sentence_transformers.models.Transformer")
DENSE, NORMALIZE = "sentence_transformers.models.Dense", "sentence_transformers.models.Normalize"
MULTI_VECTOR = "sentence_transformers.multi_vector_encoder.modules"
POOLING = ("1_Pooling", "sentence_transformers.models.Pooling")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        read_config(folder)
    said = str(refused.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    "model_type",
    ["bart", "big_bird", "data2vec-text", "fnet", "gemma2", "gpt2", "gpt_neox",
     "longformer", "mobilebert", "phi3", "rembert", "roformer", "umt5", "xlnet", "xmod"],
)  # fmt: skip
def test_a_family_that_is_not_known_is_refused_by_its_name(tmp_path: Path, model_type: str) -> None:
    said = refusal(changed(small_model("bge"), tmp_path / "model", model_type=model_type))
    assert f"model_type '{model_type}' is not supported; supported are bert, " in said


@pytest.mark.parametrize(
    ("model", "keys", "reason"),
    [
        ("bge", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bge", {"position_embedding_type": "relative_key_query"}, "position_embedding_type 'relative_key_query'"),
        ("t5", {"num_hidden_layers": 1}, "num_hidden_layers 1 contradicts num_layers 2"),
        ("mt5", {"head_dim": 8}, "head_dim 8 contradicts d_kv 4"),
        ("distilbert", {"num_attention_heads": 2}, "num_attention_heads 2 contradicts n_heads 4"),
        ("bge", {"auto_map": {"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"}}, "auto_map"),
        # gte-Qwen2, whose own code ends texts otherwise.
        ("qwen2", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": False}, "auto_map"),
        ("mistral", {"is_causal": False}, "is_causal False beside a sliding_window"),
        ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window True"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ("eurobert", {"is_causal": True}, "is_causal True"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("llama", {"num_key_value_heads": 3}, "4 heads do not share 3"),
    ],
)
def test_what_would_be_run_wrongly_is_refused_by_the_key_that_asks_for_it(
    tmp_path: Path, model: str, keys: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(changed(small_model(model), tmp_path / "model", **keys))


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (
            [TRANSFORMER, ("1_Dense", DENSE), ("2", f"{MULTI_VECTOR}.MultiVectorMask"), ("3", NORMALIZE)],
            "Transformer, Dense, MultiVectorMask, Normalize",
        ),
        ([TRANSFORMER, ("1_CNN", "sentence_transformers.models.CNN"), POOLING], "Transformer, CNN, Pooling"),
        ([TRANSFORMER, ("1_LSTM", "sentence_transformers.models.LSTM"), POOLING], "Transformer, LSTM, Pooling"),
        ([("0_WordEmbeddings", "sentence_transformers.models.WordEmbeddings"), POOLING], "WordEmbeddings, Pooling"),
        ([("", "sentence_transformers.models.Router")], "Router"),
        ([("", "sentence_transformers.models.Asym")], "Asym"),
        (
            [TRANSFORMER, ("2", "sentence_transformers.models.WeightedLayerPooling"), POOLING],
            "Transformer, WeightedLayerPooling, Pooling",
        ),
        ([TRANSFORMER, ("2", "sentence_transformers.models.LayerNorm"), POOLING], "Transformer, LayerNorm, Pooling"),
        ([TRANSFORMER, POOLING, POOLING], "Transformer, Pooling, Pooling"),
        ([TRANSFORMER, ("2", "sentence_transformers.models.Normalize"), POOLING], "Transformer, Normalize, Pooling"),
        ([TRANSFORMER], "Transformer"),
    ],
)
def test_modules_that_are_not_known_are_refused_by_their_names(
    tmp_path: Path, modules: list[tuple[str, str]], named: str
) -> None:
    folder = changed(small_model("bge"), tmp_path / "model")
    listed = [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert f"modules.json is {named}; supported is Transformer and Pooling" in refusal(folder)


def test_modules_of_another_library_are_never_run(tmp_path: Path) -> None:
    folder = changed(small_model("bge"), tmp_path / "model")
    listed = [{"idx": 0, "name": "0", "path": "", "type": "pylate.models.Dense.Dense"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert "names pylate.models.Dense.Dense, which is code of the model's own" in refusal(folder)


def test_late_interaction_without_sentence_transformers_files_is_not_taken_for_a_mean(tmp_path: Path) -> None:
    folder = changed(small_model("bge"), tmp_path / "model", architectures=["HF_ColBERT"])
    (folder / "modules.json").unlink()
    assert "has no modules.json, so nothing says how its token vectors are pooled" in refusal(folder)
