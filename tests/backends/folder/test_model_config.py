"""A model's files are read, and never guessed at."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.transformer.shapes import alibi
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendUnavailableError, ModelError

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.models import ModelFiles


DEBERTA = {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "type_vocab_size": 0,
}


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


def test_whether_sentence_transformers_pads_rows_changes_nothing(folder: Path) -> None:
    plain = read_config(folder)
    change(folder / "sentence_bert_config.json", unpad_inputs=False)
    assert read_config(folder) == plain


def test_a_maximum_beyond_the_table_of_positions_ends_with_the_table(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    assert read_config(folder).text.max_tokens == 40
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    assert read_config(folder).text.max_tokens == 8
    (folder / "sentence_bert_config.json").unlink()
    change(folder / "tokenizer_config.json", model_max_length=..., max_len=12)
    assert read_config(folder).text.max_tokens == 12, "by the name that transformers had before, and still reads"
    # The two rows before RoBERTa's first position hold no token.
    assert read_config(small_model("roberta")).encoder.longest == 40


FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "deberta"}, "model_type 'deberta' is not supported"),
        ("config.json", {"position_embedding_type": "alibi"}, "position_embedding_type 'alibi' of None"),
        ("config.json", DEBERTA | {"conv_kernel_size": 3}, "conv_kernel_size 3 is not supported"),
        ("config.json", DEBERTA | {"position_biased_input": True}, "position_biased_input True is not supported"),
        ("config.json", {"model_type": "albert", "num_hidden_groups": 3}, "2 layers are not of 3 groups"),
        ("config.json", {"hidden_act": "mish"}, "hidden_act 'mish'"),
        ("config.json", {"hidden_act": ["gelu"]}, "config.json states a value of a kind that is not read there"),
        ("2_Normalize/config.json", {"module_input_name": []}, "config.json states a value of a kind that is not read"),
        ("config.json", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map"),
        ("config.json", {"num_attention_heads": 3}, "do not divide into 3 heads"),
        ("config.json", {"hidden_size": "16"}, "hidden_size is '16'"),
        ("config.json", {"num_hidden_layers": 10**400}, "num_hidden_layers is more than 4,194,304"),
        ("config.json", {"layer_norm_eps": ...}, "no layer_norm_eps"),
        ("config.json", {"model_type": "roberta", "pad_token_id": None}, "no pad_token_id"),
        ("config.json", {"model_type": "roberta", "pad_token_id": 2**40}, "no pad_token_id of its vocabulary"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config .*fp8"),
        ("config.json", {"quantization": {"bits": 4}}, "quantization .*bits"),
        ("1_Pooling/config.json", {"pooling_mode": "softmax"}, "pools by softmax"),
        ("1_Pooling/config.json", {"pooling_layers": [1, 2]}, "pooling_layers is not known"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False}, "pools by nothing"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt is 'no'"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 32}, "vectors of 32"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": "longest"}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": False}}, "tokenizer_args"),
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, "config_args"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "x"}}}, "modality_config"),
        (
            "sentence_bert_config.json",
            {"modality_config": dict.fromkeys(("text", "message"), FORWARD)},
            "texts put as messages by a chat template",
        ),
        ("sentence_bert_config.json", {"module_output_name": "scores"}, "module_output_name"),
        ("sentence_bert_config.json", {"layers": 1}, "layers is not known"),
        ("sentence_bert_config.json", {"max_seq_length": "40"}, "stated as '40', not as a positive number"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "stated as -1"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case is 'no'"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "not texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "not texts by name"),
        ("config.json", {"is_causal": True}, "is_causal True"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"normalize_embeddings": True}, "normalize_embeddings is not known"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side 'left'"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side 'left'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nobody"}, "no prompt named 'nobody'"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "works on .*token_embeddings"),
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
        ([("sentence_transformers.models.Transformer", "")], "supported is Transformer and Pooling"),
        (
            [(f"sentence_transformers.models.{name}", "") for name in ("Transformer", "Pooling", "LSTM")],
            "is Transformer, Pooling, LSTM",
        ),
        ([("custom_st.Transformer", "")], "never run"),
        ([("sentence_transformers.models.Transformer", "../elsewhere")], "outside its folder"),
    ],
)
def test_unsupported_modules_are_named(folder: Path, modules: list[tuple[str, str]], message: str) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": path} for kind, path in modules]))
    with pytest.raises(ModelError, match=message):
        read_config(folder)


def test_a_token_for_padding_that_no_table_holds_is_not_put_there(folder: Path) -> None:
    for stated in (-1, 10**9, "0", None):
        change(folder / "config.json", pad_token_id=stated)
        assert read_config(folder).encoder.padding_id == 0


def test_a_folder_without_modules_is_refused_for_its_unknown_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"no modules\.json, so nothing says how"):
        read_config(folder)


def test_what_is_empty_changes_nothing_and_is_read(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", tokenizer_args={}, processing_kwargs={}, query_length=None)
    change(folder / "config.json", quantization_config=None)
    assert read_config(folder).text == read_config(small_model("bge")).text


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"PEFT adapter \(adapter_config\.json\): merge it"):
        read_config(folder)


@pytest.mark.parametrize(
    ("model", "file", "values", "message"),
    [
        ("mpnet", "config.json", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets 64"),
        ("mpnet", "config.json", {"pad_token_id": 0}, "pad_token_id 0"),
        ("t5", "config.json", {"relative_attention_num_buckets": 3}, "3 relative_attention_num_buckets do not hold"),
        ("mt5", "config.json", {"relative_attention_max_distance": 8}, "do not hold distances of up to 8"),
        ("modernbert", "config.json", {"layer_types": ["full_attention"]}, "layer_types .* are not 4"),
        ("modernbert", "config.json", {"norm_bias": "no"}, "norm_bias is 'no'"),
        ("modernbert", "config.json", {"norm_eps": float("nan")}, "norm_eps is nan"),
        ("gemma", "config.json", {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ("gemma", "config.json", {"num_hidden_layers": 10**12}, "num_hidden_layers is more than"),
        ("nomic", "sentence_bert_config.json", {"max_seq_length": float("inf")}, "a kind that is not read there"),
        ("qwen3", "config.json", {"use_sliding_window": True}, "use_sliding_window True"),
        ("qwen3", "config.json", {"rope_parameters": None, "rope_theta": None}, "rope_theta is None"),
        ("qwen3", "config.json", {"num_key_value_heads": 3}, "do not share 3"),
        ("gemma", "config.json", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping 30.0"),
        ("gemma", "2_Dense/config.json", {"activation_function": "mine.Act"}, "activation_function 'mine.Act'"),
        ("gemma", "2_Dense/config.json", {"in_features": 8}, "takes vectors of 8, and vectors of 16 come"),
        ("gemma", "2_Dense/config.json", {"use_residual": True}, "use_residual"),
        ("gemma", "2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on .*token_embeddings"),
        ("gemma", "2_Dense/config.json", {"dropout": 0.1}, "dropout is not known"),
    ],
)
def test_what_a_family_or_a_dense_layer_would_run_wrongly_is_refused(
    tmp_path: Path, model: str, file: str, values: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(small_model(model), tmp_path / "model")
    change(folder / file, **values)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)


def test_the_older_form_of_a_configuration_reads_as_the_newer(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("gemma"), tmp_path / "model")
    new = read_config(folder).encoder
    file = folder / "config.json"
    stated = json.loads(file.read_text())["rope_parameters"]
    change(
        file,
        rope_parameters=...,
        rope_theta=stated["full_attention"]["rope_theta"],
        rope_local_base_freq=stated["sliding_attention"]["rope_theta"],
    )
    assert read_config(folder).encoder == new
    change(file, layer_types=..., sliding_window_pattern=2)
    assert read_config(folder).encoder == new


def test_the_own_words_of_nomicbert_read_as_those_of_transformers(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("nomic"), tmp_path / "model")
    ours = read_config(folder).encoder
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    own = {"model_type": "nomic_bert", "vocab_size": raw["vocab_size"], "pad_token_id": 0, "type_vocab_size": 2}
    own |= {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32, "n_positions": 40, "layer_norm_epsilon": 1e-12}
    own |= {"activation_function": "swiglu", "mlp_fc1_bias": False, "mlp_fc2_bias": False, "qkv_proj_bias": False}
    own |= {"prenorm": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_scaling_factor": None}
    own |= {"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling.NomicBertModel"}}
    file.write_text(json.dumps(own))
    assert read_config(folder).encoder == ours
    for key, value in (("causal", True), ("rotary_scaling_factor", 2.0), ("activation_function", "gelu")):
        file.write_text(json.dumps({**own, key: value}))
        with pytest.raises(ModelError, match=f"{key} '?{value}"):
            read_config(folder)


def test_gte_as_it_was_published_reads_as_transformers_has_it(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("gte"), tmp_path / "model")
    theirs, file = read_config(folder).encoder, folder / "config.json"
    # As arctic-embed-m-v2.0 names its code, and as gte-multilingual-base does.
    change(file, auto_map={"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"}, pack_qkv=True)
    assert read_config(folder).encoder == theirs
    own: dict[str, Any] = {"model_type": "new", "position_embedding_type": "rope", "unpad_inputs": False}
    own |= {"auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}, "logn_attention_scale": False}
    change(file, **own, rope_theta=160_000, rope_parameters=...)
    assert read_config(folder).encoder == theirs
    assert len(TextEncoder.load(folder).encode(["the fox"])[0].ids) > 2
    change(file, rope_theta=20_000, rope_scaling={"type": "ntk", "factor": 8.0})
    # text-embeddings-inference and vLLM write it so.
    frequencies = 1 / (20_000 * 8.0) ** (np.arange(0, 4, 2) / 4) / 8.0 ** (2 / 4)
    assert read_config(folder).encoder.attentions[0].frequencies == pytest.approx(frequencies, rel=1e-6)
    for key, value in (("logn_attention_scale", True), ("position_embedding_type", "absolute"), ("pack_qkv", False)):
        file.write_text(json.dumps(json.loads(file.read_text()) | own | {key: value}))
        with pytest.raises(ModelError, match=f"{key} '?{value}"):
            read_config(folder)


def test_nobody_is_asked_whether_a_models_code_may_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal, for 15 seconds, where it knows no such family."""
    folder = shutil.copytree(small_model("gte"), tmp_path / "model")
    change(folder / "config.json", model_type="new", auto_map={"AutoConfig": "Alibaba-NLP/new-impl--configuration.New"})
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("somebody was asked"))
    TextEncoder.load(folder)


def test_a_stated_maximum_holds_beyond_what_angles_were_trained_for(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("modernbert"), tmp_path / "model")
    assert read_config(folder).text.max_tokens == 40
    change(folder / "sentence_bert_config.json", max_seq_length=100)
    assert read_config(folder).text.max_tokens == 100


def test_dense_layers_and_truncation_decide_the_dimensions() -> None:
    gemma, electra, camembert = (read_config(small_model(name)) for name in ("gemma", "electra", "camembert"))
    assert (gemma.dimensions, gemma.normalised) == (16, True)
    assert (electra.dimensions, electra.normalised) == (12, False)
    assert (camembert.dimensions, camembert.normalised) == (6 * 16, False)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_config(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a JSON object"):
        read_config(folder)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"feed_forward_type": "original"}, "feed_forward_type 'original' is not supported"),
        (
            {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}},
            "qk-post-norm--modeling_bert.JinaBertModel is not supported; that of",
        ),
        ({"auto_map": None}, "'alibi' of None is not supported"),
        ({"position_embedding_type": "absolute"}, "auto_map"),
    ],
)
def test_jinas_bert_by_other_code_is_refused(values: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("jina"), tmp_path / "model")
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=sentence):
        read_config(folder)


def test_heads_lose_by_distance_as_alibi_has_it_also_where_they_are_no_power_of_two() -> None:
    assert alibi(8, 2)[1].tolist() == [-(0.5**power) for power in range(1, 9)]
    between = [-(0.5 ** (power / 2)) for power in (1, 3, 5, 7)]
    assert alibi(12, 3)[2] / 2 == pytest.approx([*alibi(8, 2)[1], *between])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"activation_function": "swiglu"}, "activation_function 'swiglu' is not supported"),
        ({"mlp_fc1_bias": False}, "mlp_fc1_bias False is not supported"),
        ({"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights True"),
        ({"num_shared_experts": 1}, "num_shared_experts 1"),
        ({"expert_choice_router": True}, "expert_choice_router True"),
        ({"moe_top_k": 5}, "5 of 4 experts in every layer of 2 are not supported"),
        ({"moe_every_n_layers": 1}, "2 of 4 experts in every layer of 1"),
        ({"num_experts": None}, "num_experts is None"),
    ],
)
def test_experts_of_another_make_are_refused(values: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("nomic-moe"), tmp_path / "model")
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=sentence):
        read_config(folder)


def test_experts_that_do_not_fit_their_number_are_refused_and_packages_run_none(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("nomic-moe"), tmp_path / "model")
    with pytest.raises(BackendUnavailableError, match="coreml-emulated runs no experts"):
        make_backend("coreml-emulated", folder).load()
    change(folder / "config.json", num_experts=3)
    with pytest.raises(ModelError, match=r"router\.layer\.weight is 4 x 12, and 3 x 12 is needed"):
        make_backend("numpy", folder).load()
