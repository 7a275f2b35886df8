"""A model's files are read, and never guessed at."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.embedding.config import read_config
from impetus_backends.errors import ModelError

from .conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.models import ModelFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a small model, to break."""
    return shutil.copytree(small_model("bge"), tmp_path / "model")


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_minilm_reads_as_its_authors_published_it(minilm: ModelFiles) -> None:
    config = read_config(minilm.folder)
    assert (config.encoder.layers, config.encoder.hidden_size, config.encoder.heads) == (6, 384, 12)
    assert (config.pooling.modes, config.normalised, config.text.max_tokens) == (("mean",), True, 256)


def test_old_and_new_forms_of_the_files_are_read(folder: Path) -> None:
    old = read_config(folder)
    assert (old.pooling.modes, old.normalised, old.text.max_tokens) == (("cls",), True, 40)
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 16, "pooling_mode": ["cls"]}')
    assert read_config(folder) == old
    modules = json.loads((folder / "modules.json").read_text())
    for module, name in zip(modules, ("Transformer", "Pooling", "Normalize"), strict=True):
        module["type"] = f"sentence_transformers.models.{name}"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert read_config(folder) == old
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    assert not read_config(folder).normalised


def test_a_maximum_beyond_the_table_of_positions_ends_with_the_table(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    assert read_config(folder).text.max_tokens == 40
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    assert read_config(folder).text.max_tokens == 8
    # The two rows before RoBERTa's first position hold no token.
    assert read_config(small_model("roberta")).encoder.longest == 40


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "mpnet"}, "model_type 'mpnet' is not supported"),
        ("config.json", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map"),
        ("config.json", {"num_attention_heads": 3}, "do not divide into 3 heads"),
        ("config.json", {"hidden_size": "16"}, "hidden_size is '16'"),
        ("config.json", {"layer_norm_eps": ...}, "no layer_norm_eps"),
        ("config.json", {"model_type": "roberta", "pad_token_id": None}, "no pad_token_id"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by cls and max"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pools by lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False}, "pools by nothing"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 32}, "vectors of 32"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side 'left'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nobody"}, "no prompt named 'nobody'"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "sentence_embedding alone"),
    ],
)
def test_what_is_not_supported_is_one_clear_error(
    folder: Path, file: str, values: dict[str, Any], message: str
) -> None:
    change(folder / file, **values)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("sentence_transformers.models.Transformer", "")], "supported is Transformer, Pooling"),
        (
            [(f"sentence_transformers.models.{name}", "") for name in ("Transformer", "Pooling", "Dense")],
            "is Transformer, Pooling, Dense",
        ),
        ([("custom_st.Transformer", "")], "never run"),
        ([("sentence_transformers.models.Transformer", "../elsewhere")], "outside its folder"),
    ],
)
def test_unsupported_modules_are_named(folder: Path, modules: list[tuple[str, str]], message: str) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": path} for kind, path in modules]))
    with pytest.raises(ModelError, match=message):
        read_config(folder)


def test_a_folder_without_modules_is_refused_for_its_unknown_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"no modules\.json, so nothing says how"):
        read_config(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_config(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a JSON object"):
        read_config(folder)
