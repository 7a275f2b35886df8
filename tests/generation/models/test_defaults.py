"""What a model's files say of it beside its weights: how much it reads, how it is sampled, where its texts end."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import ModelError
from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from impetus_backends.generation.models.context import ASSUMED_CONTEXT_TOKENS, context_tokens
from impetus_backends.generation.models.defaults import model_defaults
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.protocol import Generated, Rejected

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


@pytest.fixture
def folder(loaded: LoadedModel, tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def write(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


class Silent:
    """A tokenizer, or a model, that knows no lengths."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 8}}, 131_072),
        ({"model_type": "gemma3_text"}, 131_072),
        ({"model_type": "kimi_linear", "model_max_length": 1_048_576}, 1_048_576),
        ({"model_type": "kimi_vl", "language_config": {"max_position_embeddings": 8192}}, 8192),
        ({"model_type": "mamba", "n_layer": 2}, None),
        ({"model_type": "nobody_knows_it"}, None),
        ({"model_type": "llama", "max_position_embeddings": True, "n_ctx": -1, "seq_length": 900}, 900),
    ],
)
def test_how_much_a_model_reads_is_what_its_files_or_its_class_say(
    loaded: LoadedModel, tmp_path: Path, config: dict[str, Any], expected: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_tokens(tmp_path, config, Silent(), Silent()) == expected


def test_the_arguments_of_mlx_lms_class_tell_what_transformers_does_not(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody_knows_it"}')
    length = context_tokens(tmp_path, {"model_type": "nobody_knows_it"}, loaded.model, Silent())
    assert length == loaded.model.args.max_position_embeddings == 1024


@pytest.fixture
def unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of which nobody says how much it reads."""
    write(folder / "config.json", max_position_embeddings=None)
    write(folder / "tokenizer_config.json", model_max_length=None)
    monkeypatch.setattr("impetus_backends.generation.models.context._by_transformers", lambda folder: None)
    monkeypatch.setattr("impetus_backends.generation.models.context._by_arguments", lambda model: None)
    return folder


def test_what_is_not_known_is_said_to_be_assumed(unknown: Path, work: Any, drive: Any) -> None:
    engine = open_generation_engine(unknown, model_name="tiny", aliases=(), limits=EngineLimits(2))
    assert engine.info.max_tokens == ASSUMED_CONTEXT_TOKENS
    assert any("4,096 tokens are taken for the most it reads" in reason for reason in engine.info.reasons)
    ended = drive(engine, work(1, "Hello", max_tokens=5000), work(2, "word " * 20_000), work(3, "Hello", max_tokens=2))
    for at in (1, 2):
        assert isinstance(ended[at], Rejected)
        assert "this model's maximum context length is 4096 tokens (assumed, for it is not known)" in ended[at].message
    assert isinstance(ended[3], Generated)
    engine.close()


def test_an_operator_who_knows_better_is_believed(unknown: Path, work: Any, drive: Any) -> None:
    limits = EngineLimits(2, context_tokens=6000)
    engine = open_generation_engine(unknown, model_name="tiny", aliases=(), limits=limits)
    assert engine.info.max_tokens == 6000
    rejected = drive(engine, work(1, "Hello", max_tokens=6000))[1]
    assert "this model's maximum context length is 6000 tokens, fewer than" in rejected.message
    engine.close()


def test_sampling_and_ends_are_read_from_the_generation_configuration(folder: Path) -> None:
    write(
        folder / "generation_config.json",
        temperature=0.6, top_p=0.95, top_k=20, min_p=0, repetition_penalty=1.05, do_sample=True, eos_token_id=[2, 70],
    )  # fmt: skip
    defaults = load(folder).defaults
    assert defaults.sampling == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05,
    }  # fmt: skip
    assert defaults.end_tokens == (2, 70, 0)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {}),
        ({"temperature": "hot", "top_p": 7, "top_k": True, "min_p": None}, {}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0, "top_p": 0.8}),
    ],
)
def test_what_makes_no_sense_in_it_is_no_default(tmp_path: Path, stated: dict[str, Any], expected: Any) -> None:
    write(tmp_path / "generation_config.json", **stated)
    assert model_defaults(tmp_path).sampling == expected


def test_every_token_that_the_files_call_an_end_ends_a_text(
    folder: Path, loaded: LoadedModel, info: Any, work: Any, drive: Any
) -> None:
    engine = GenerationEngine(loaded, info)
    drawn = drive(engine, work(1, "Hello", max_tokens=12, logprobs=True))[1]
    engine.close()
    third = loaded.tokenizer.convert_tokens_to_ids(drawn.answers[0].logprobs[2].token)
    assert isinstance(third, int)
    write(folder / "generation_config.json", eos_token_id=[third, 99_999_999])
    changed = load(folder)
    assert {third, *loaded.tokenizer.eos_token_ids} == set(changed.tokenizer.eos_token_ids)
    engine = GenerationEngine(changed, info)
    ended = drive(engine, work(1, "Hello", max_tokens=12))[1]
    assert (ended.finish_reason, ended.completion_tokens) == ("stop", 3)
    engine.close()


def test_a_template_in_a_file_of_json_is_used_where_there_is_no_other(folder: Path) -> None:
    write(
        folder / "chat_template.json", chat_template="{% for message in messages %}<{{ message.content }}>{% endfor %}"
    )
    assert "<|im_start|>" in load(folder).tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    )
    (folder / "chat_template.jinja").unlink()
    model = load(folder)
    assert model.tokenizer.has_chat_template
    assert model.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<x>"


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.json"])
def test_a_file_that_cannot_be_read_is_one_sentence(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ModelError, match=name) as refused:
        model_defaults(folder)
    assert "\n" not in str(refused.value)
