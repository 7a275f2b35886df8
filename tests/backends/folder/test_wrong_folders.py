"""A model's folder that would make wrong vectors is refused by one sentence that names what is wrong in it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.engine import open_engine
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import ModelError
from impetus_backends.models import missing, resolve

from ..conftest import small_model
from .test_model_config import change

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, np.ndarray]


def written(file: Path, by: Callable[[Tensors], Tensors]) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in by(load_file(file)).items()}, file)


def weights(folder: Path, by: Callable[[Tensors], Tensors]) -> None:
    written(folder / "model.safetensors", by)


def header(folder: Path, by: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    stated = json.loads(content[8 : 8 + size])
    by(stated)
    text = json.dumps(stated).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def on_one_place(stated: dict[str, Any]) -> None:
    alike = [entry for name, entry in stated.items() if name.endswith("LayerNorm.weight")]
    alike[0]["data_offsets"] = alike[1]["data_offsets"]


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def other_form(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def tokenizer_that_raises(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")


def zeros(tensors: Tensors) -> Tensors:
    return {name: array * 0 for name, array in tensors.items()}


def under_two_names(tensors: Tensors) -> Tensors:
    return tensors | {f"model.{name}": array * 2 for name, array in tensors.items()}


def dense_without_bias(folder: Path) -> None:
    change(folder / "2_Dense" / "config.json", bias=False)


def lower_cased_in_one_file(folder: Path) -> None:
    """The class that the other file names knows nothing of it."""
    change(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    change(folder / "tokenizer_config.json", tokenizer_class="RobertaTokenizer")


def truncated_at_the_left(folder: Path) -> None:
    """As transformers takes it where tokenizer_config.json says nothing else."""
    cut = {"direction": "Left", "max_length": 40, "strategy": "LongestFirst", "stride": 0}
    change(folder / "tokenizer.json", truncation=cut)


def padded_at_the_left(folder: Path) -> None:
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None}
    change(folder / "tokenizer.json", padding=padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"})


def leaves_merges_out(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder / "tokenizer.json", model=model | {"dropout": 0.1})


def in_python(folder: Path) -> None:
    """As Japanese models have it, and Vietnamese ones in their way."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    change(folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic")


def of_the_second_type(folder: Path) -> None:
    """A tokenizer that has transformers tell the model so of every text."""
    processor = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    for piece in processor["single"]:
        next(iter(piece.values()))["type_id"] = 1
    change(folder / "tokenizer.json", post_processor=processor)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", model_input_names=names)


@pytest.mark.parametrize(
    ("model", "spoil", "message"),
    [
        ("roberta", leaves_merges_out, "leaves out merges by chance .dropout 0.1"),
        ("bge", in_python, "is a BertJapaneseTokenizer, which transformers writes out in Python"),
        ("albert", of_the_second_type, "token types other than 0"),
        ("bge", truncated_at_the_left, "tokenizer in .*: truncation_side 'left' is not supported"),
        ("qwen3", truncated_at_the_left, "tokenizer in .*: truncation_side 'left' is not supported"),
        ("bge", padded_at_the_left, "tokenizer in .*: padding_side 'left' is not supported"),
        ("bge", lambda folder: (folder / "modules.json").write_text('["Transformer"]'), "lists 'Transformer', and not"),
        ("bge", lambda folder: change(folder / "1_Pooling/config.json", pooling_mode=None), "pools by None"),
        ("bge", lambda folder: change(folder / "1_Pooling/config.json", pooling_mode={"cls": True}), "pools by .*cls"),
        ("bge", partial(weights, by=under_two_names), "hold .* twice, under two names"),
        ("roberta", partial(weights, by=zeros), "make the same vector of every text"),
        ("bge", partial(header, by=on_one_place), "do not lie one after the other"),
        ("bge", cut, "its header tells of"),
        ("bge", partial(index, weight_map=["a"]), "weight_map does not say by name"),
        ("bge", partial(index, weight_map={"a": 3}), "weight_map does not say by name"),
        ("bge", partial(index, weight_map={"a": "../b"}), "points outside its folder"),
        ("bge", other_form, "model-Q4_K_M.gguf is not read"),
        ("electra", dense_without_bias, "2_Dense have a bias"),
        ("t5", lambda folder: change(folder / "config.json", dense_act_fn="gelu_new"), "dense_act_fn 'gelu_new'"),
        ("t5", lambda folder: change(folder / "config.json", is_gated_act=True), "is_gated_act True"),
        ("qwen3", tokenizer_that_raises, "reads no text"),
        (
            "roberta",
            lower_cased_in_one_file,
            "does not read the tokenizer in .* as its tokenizer.json says .*: correct tokenizer_class",
        ),
    ],
)
def test_what_would_make_wrong_vectors_is_refused_by_one_sentence(
    tmp_path: Path, model: str, spoil: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(small_model(model), tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        open_engine(make_backend("numpy", folder), resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_prompt_without_a_name_is_nobodys_default(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "model")
    change(folder / "config_sentence_transformers.json", prompts={"": "no default: "}, default_prompt_name=None)
    plain, spoilt = (TextEncoder.load(each).encode(["fox"])[0].ids for each in (small_model("bge"), folder))
    assert plain.tolist() == spoilt.tolist()


def test_a_transformer_in_a_folder_of_its_own_is_read_as_one_beside_the_others(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "model")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [each for each in folder.iterdir() if each.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(inner / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    files = resolve(str(folder))
    assert missing(files.folder) == []
    rows = [np.array([1, 5, 7, 2], np.int32)]
    beside, apart = (make_backend("numpy", each) for each in (small_model("bge"), files.folder))
    beside.load()
    apart.load()
    np.testing.assert_array_equal(apart.embed(rows), beside.embed(rows))


def test_that_a_tokenizer_json_cuts_and_pads_rows_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("roberta"), tmp_path / "model")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]  # as older files have them
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    change(folder / "tokenizer.json", model=model, truncation=truncation, padding=padding)
    texts = ["a text of a few words, and more of them than eight", ""]
    found, expected = (TextEncoder.load(each).encode(texts) for each in (folder, small_model("roberta")))
    assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]
