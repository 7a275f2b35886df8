"""What torch wrote becomes safetensors: the same tensors, and nothing that a file names is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.stored.tensors import read_tensors
from impetus_backends.embedding.folder.stored.torch_files import convert, convert_folder
from impetus_backends.errors import ModelError
from impetus_worker.cli.main import main
from tests.paths import DATA

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

TORCH = DATA / "torch"


def tensors(file: Path) -> dict[str, tuple[str, bytes]]:
    return {name: (kind, array.tobytes()) for name, array, kind in read_tensors(file)}


def shapes(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    stated = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: entry["shape"] for name, entry in stated.items() if name != "__metadata__"}


@pytest.mark.parametrize("form", ["new", "old"])
def test_files_of_torch_become_what_torch_and_safetensors_make_of_them(form: str, tmp_path: Path) -> None:
    convert(TORCH / f"{form}.bin", made := tmp_path / "made.safetensors")
    assert tensors(made) == tensors(TORCH / "new.safetensors")
    assert shapes(made) == shapes(TORCH / "new.safetensors")
    assert {"bfloat16", "scalar", "nothing", "turned", "tied", "layer.weight"} <= set(shapes(made))


class Trap:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._folder,)


def zipped(file: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("model/data.pkl", content)


@pytest.mark.parametrize("form", ["new", "old"])
def test_what_a_file_names_is_not_run_and_the_sentence_says_what_it_was(form: str, tmp_path: Path) -> None:
    trap = pickle.dumps({"weight": Trap(tmp_path / "sprung")})
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "pytorch_model.bin"
    zipped(file, trap) if form == "new" else file.write_bytes(trap)
    ended = CliRunner().invoke(main, ["convert", "--from-torch", str(file.parent)])
    assert ended.exit_code == 1
    assert f"Error: {file} names " in ended.output
    assert "mkdir, which is no tensor: it is not read, for reading it could run code" in ended.output
    assert not (tmp_path / "sprung").exists()
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def beyond_its_storage(file: Path) -> None:
    """The same file, whose storages are shorter."""
    with zipfile.ZipFile(TORCH / "new.bin") as whole, zipfile.ZipFile(file, "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[:-1] if "/data/" in name else content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: shutil.copy(TORCH / "module.bin", file), r"names torch\.nn\.modules\.linear\.Linear"),
        (lambda file: shutil.copy(TORCH / "checkpoint.bin", file), "holds epoch as int, and not tensors alone"),
        (lambda file: zipped(file, pickle.dumps([1])), "holds list, and not tensors by name"),
        (lambda file: zipped(file, b""), "cannot be read as a file of torch's: EOFError"),
        (lambda file: zipped(file, pickle.dumps({}), zipfile.ZIP_DEFLATED), "it is compressed"),
        (beyond_its_storage, "a tensor reaches beyond its storage"),
        (lambda file: file.write_bytes((TORCH / "old.bin").read_bytes()[:-3]), "it is not whole"),
        (lambda file: file.write_bytes((TORCH / "new.bin").read_bytes()[:-9]), "cannot be read"),
        (lambda file: file.write_bytes(b"version https://git-lfs"), "cannot be read"),
        (lambda file: file.write_bytes(pickle.dumps(7)), "begins otherwise than torch writes"),
    ],
)
def test_what_is_damaged_or_holds_other_things_than_tensors_is_one_sentence(
    write: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "pytorch_model.bin"
    write(file)
    with pytest.raises(ModelError, match=message) as caught:
        convert(file, tmp_path / "made.safetensors")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def old_model(folder: Path) -> Path:
    model = shutil.copytree(small_model("bge"), folder)
    (model / "model.safetensors").unlink()
    shutil.copy(TORCH / "bge.bin", model / "pytorch_model.bin")
    return model


def test_a_folder_is_converted_where_it_lies_and_then_serves(tmp_path: Path) -> None:
    model = old_model(tmp_path / "model")
    with pytest.raises(ModelError, match=f"impetus-worker convert --from-torch {model}"):
        open_weights(read_config(model))
    ended = CliRunner().invoke(main, ["convert", "--from-torch", str(model)])
    assert ended.exit_code == 0, ended.output
    assert f"MB  {model / 'model.safetensors'}" in ended.output
    assert tensors(model / "model.safetensors") == tensors(small_model("bge") / "model.safetensors")
    open_weights(read_config(model))
    again = CliRunner().invoke(main, ["convert", "--from-torch", str(model)])
    assert "holds no pytorch_model.bin without a model.safetensors beside it" in again.output


def test_shards_heads_and_the_folders_of_modules_are_converted_into_a_new_folder(tmp_path: Path) -> None:
    model = old_model(tmp_path / "model")
    (model / "pytorch_model.bin").unlink()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    shutil.copy(TORCH / "state.bin", model / names[0])
    shutil.copy(TORCH / "new.bin", model / names[1])
    index = {"metadata": {}, "weight_map": {"weight": names[0], "bias": names[0], "float32": names[1]}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shutil.copy(TORCH / "state.bin", model / "sparse_linear.pt")
    (model / "2_Dense").mkdir()
    shutil.copy(TORCH / "old.bin", model / "2_Dense" / "pytorch_model.bin")
    new = tmp_path / "models" / "new"
    made = convert_folder(model, new, lambda step, share: None)
    assert [file.relative_to(new).as_posix() for file in made] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "sparse_linear.safetensors",
        "2_Dense/model.safetensors",
    ]
    new_index = json.loads((new / "model.safetensors.index.json").read_text())
    assert new_index["weight_map"]["float32"] == "model-00002-of-00002.safetensors"
    assert set(shapes(new / "model-00001-of-00002.safetensors")) == {"weight", "bias"}
    assert (new / "modules.json").is_file()
    assert not list(new.rglob("pytorch_model*"))
    assert [each.name for each in new.parent.iterdir()] == ["new"]
    with pytest.raises(ModelError, match="new exists already"):
        convert_folder(model, new, lambda step, share: None)


@pytest.mark.parametrize("weight_map", [{"a": "../elsewhere.bin"}, {"a": "gone.bin"}, ["a"], None])
def test_an_index_that_leads_elsewhere_is_refused(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"index\.json (names|does not say)"):
        convert_folder(tmp_path, None, lambda step, share: None)


def test_other_options_do_not_go_with_it_and_a_name_is_no_folder() -> None:
    ended = CliRunner().invoke(main, ["convert", "--from-torch", "some/model", "--quantize", "int8"])
    assert "--quantize is not for --from-torch" in ended.output
    ended = CliRunner().invoke(main, ["convert", "--from-torch", "some/model"])
    assert "some/model is not a folder: fetch the model whole first" in ended.output
