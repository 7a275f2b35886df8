"""Files that torch wrote, as safetensors: read without torch and without running anything that they name.

A pickle is a program. Of those that torch writes of tensors two functions and a few names of types are needed, and here
these stand for data; whatever else a file names is refused with that name. It is read in a process of its own, with
bounds on its time and memory. Of each folder all of a model's files are made before any is put in its place.

Formats: https://docs.pytorch.org/docs/stable/notes/serialization.html, and torch/serialization.py for the older one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DTYPES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
"""Of torch's storages: the names of their elements in safetensors, and the bytes of each."""
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_INDEX = "pytorch_model.bin.index.json"
_ALONE = ("sparse_linear.pt", "colbert_linear.pt")
"""Heads that bge-m3 and its kind keep in files of their own."""
_SPARE_BYTES = 2 * 1024**3
_SPARE_S, _BYTES_A_SECOND = 60, 10_000_000


def convert_folder(folder: Path, target: Path | None, tell: Callable[[str, float], None]) -> list[Path]:
    """Makes safetensors of all files of torch's in a model's folder and in those of its modules; returns what was made.

    `target`: a new folder for the whole model; None puts them beside the others. Raises `ModelError` for a folder with
    nothing to convert, for files that are damaged or hold anything but tensors, and where something would be replaced.
    """
    found = {file.relative_to(folder): made for file, made in _to_convert(folder)}
    if not found:
        raise ModelError(f"{folder} holds no pytorch_model.bin without a model.safetensors beside it")
    if target is not None and target.exists():
        raise ModelError(f"{target} exists already")
    into = target or folder
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".from-torch-", dir=into.parent if target else folder) as name:
        draft = Path(name) / "model"
        if target is not None:
            left_out = {folder / file for file in found}
            shutil.copytree(
                folder,
                draft,
                ignore=lambda at, names: [n for n in names if Path(at) / n in left_out],
            )
        for number, (file, made) in enumerate(found.items()):
            tell(f"converting {file}", number / len(found))
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            if made.endswith(".json"):
                _write_index(folder / file, draft / file.parent / made)
            else:
                _convert_elsewhere(folder / file, draft / file.parent / made)
        places = [file.parent / made for file, made in found.items()]
        if target is not None:
            os.replace(draft, target)
        else:
            for place in places:
                os.replace(draft / place, folder / place)
    return [into / place for place in places]


def _to_convert(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files, and what becomes of each; an index comes after what it names."""
    for place in (folder, *sorted(each for each in folder.iterdir() if each.is_dir())):
        if not any((place / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
            if (place / "pytorch_model.bin").is_file():
                yield place / "pytorch_model.bin", "model.safetensors"
            elif (place / _INDEX).is_file():
                for shard in sorted(set(_map(place / _INDEX).values())):
                    yield place / shard, _shard(shard)
                yield place / _INDEX, "model.safetensors.index.json"
        for name in _ALONE:
            made = Path(name).with_suffix(".safetensors").name
            if (place / name).is_file() and not (place / made).exists():
                yield place / name, made


def _map(index: Path) -> dict[str, str]:
    """Of each tensor its file."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} does not say by name which file a tensor is in") from None
    for shard in shards.values():
        if "/" in shard or shard.startswith(".") or not (index.parent / shard).is_file():
            raise ModelError(f"{index} names {shard}, which is not beside it")
    return shards


def _shard(name: str) -> str:
    return f"{name.removeprefix('pytorch_').removesuffix('.bin')}.safetensors"


def _write_index(index: Path, made: Path) -> None:
    weight_map = {name: _shard(shard) for name, shard in _map(index).items()}
    made.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))


def _convert_elsewhere(file: Path, made: Path) -> None:
    """In a process of its own."""
    size = file.stat().st_size
    limit_s = _SPARE_S + size / _BYTES_A_SECOND
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(file), str(made)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{file} was not read in the {limit_s:.0f} s that it may take") from None
    if ended.returncode == 1:
        raise ModelError(ended.stderr.strip().rpartition("\n")[2])
    if ended.returncode:
        raise ModelError(
            f"the process that read {file} ended with {ended.returncode}: is it whole, and is memory free?"
        )


def main(file: Path, made: Path) -> int:
    size = file.stat().st_size
    with contextlib.suppress(ValueError, OSError):  # a system may not have it
        most = 2 * size + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        convert(file, made)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{file} needs more memory to be read than a file of its size may", file=sys.stderr)
        return 1
    return 0


def convert(file: Path, made: Path) -> None:
    """Writes the tensors of one file of torch's. Raises `ModelError`, naming what is not a tensor in it."""
    try:
        tensors = dict(_read(file))
    except _OtherThanTensorsError as error:
        raise ModelError(f"{file} {error}") from None
    except Exception as error:  # of a file that is damaged any may be raised, by pickle, zipfile or numpy
        raise ModelError(f"{file} cannot be read as a file of torch's: {type(error).__name__}: {error}") from error
    # Those of the widest elements first, so that all lie as mapped arrays want it.
    ordered = dict(sorted(tensors.items(), key=lambda named: (-named[1].storage.item_bytes, named[0])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.size_bytes
        header[name] = {"dtype": tensor.storage.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with made.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered.values():
            stream.write(tensor.view.tobytes())


def _read(file: Path) -> Iterator[tuple[str, _Tensor]]:
    found = _zipped(file) if zipfile.is_zipfile(file) else _streamed(file)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _OtherThanTensorsError(f"holds {type(found).__name__}, and not tensors by name")
    for name, tensor in found.items():
        if not isinstance(tensor, _Tensor):
            raise _OtherThanTensorsError(f"holds {name} as {type(tensor).__name__}, and not tensors alone")
        tensor.check()
        yield name, tensor


class _OtherThanTensorsError(Exception):
    """What a file does instead, after its name."""


@dataclass(slots=True)
class _Storage:
    dtype: str
    item_bytes: int
    count: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.storage.item_bytes

    def check(self) -> None:
        """Raises `ValueError` where it is not inside its storage."""
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        end = self.offset + steps + 1 if all(self.shape) else 0
        if min((self.offset, *self.shape, *self.strides)) < 0 or end * self.storage.item_bytes > len(self.storage.data):
            raise ValueError("a tensor reaches beyond its storage")

    @property
    def view(self) -> np.ndarray:
        item_bytes = self.storage.item_bytes
        flat = np.frombuffer(self.storage.data, f"V{item_bytes}")[self.offset :]
        steps = [step * item_bytes for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What stands for a type of torch's that a pickle names."""

    name: str


def _rebuild(storage: object, offset: int, shape: Any, strides: Any, *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    """Knows three functions, which make data, and names of types, which are data."""

    def __init__(self, stream: BinaryIO, storage: Callable[[str, _Storage], _Storage]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _Kind(name)
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _OtherThanTensorsError(
                f"names {module}.{name}, which is no tensor: it is not read, for reading it could run code"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, count, *view = pid
        if tag != "storage" or not isinstance(kind, _Kind) or any(view):
            raise ValueError(f"{pid!r:.80} is no storage")
        dtype, size = _DTYPES[kind.name]
        return self._storage(str(key), _Storage(dtype, size, int(count)))


def _zipped(file: Path) -> Any:
    """The form of torch 1.6 and later: a pickle, and a file for each storage."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        inside = next(name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("data.pkl"))
        order = f"{inside}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        read: dict[str, _Storage] = {}

        def storage(key: str, stated: _Storage) -> _Storage:
            if key not in read:
                stated.data = archive.read(f"{inside}data/{key}")
                read[key] = stated
            return read[key]

        return _Unpickler(io.BytesIO(archive.read(f"{inside}data.pkl")), storage).load()


def _streamed(file: Path) -> Any:
    """The older form: pickles one after the other, and then the storages."""
    named: dict[str, _Storage] = {}
    with file.open("rb") as stream:

        def next_pickle() -> Any:
            return _Unpickler(stream, named.setdefault).load()

        if next_pickle() != _OLD_MAGIC:
            raise ValueError("it begins otherwise than torch writes")
        _, system, found, keys = (next_pickle() for _ in range(4))
        if not system["little_endian"]:
            raise ValueError("its numbers are big-endian")
        for key in keys:
            storage = named[key]
            count = int.from_bytes(stream.read(8), "little")
            storage.data = stream.read(count * storage.item_bytes)
            if count != storage.count or len(storage.data) != count * storage.item_bytes:
                raise ValueError("it is not whole")
        return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
