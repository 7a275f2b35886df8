"""Safetensors files: which ones a folder has, and the tensors in one, mapped and not yet read.

Format: https://github.com/huggingface/safetensors#format. Read here and not through the library, because numpy has no
bfloat16 and a mapped file costs no memory until a tensor is asked for.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.folder.files import read_json
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""What is read, by the format's names."""
WORDS = "U32"
"""What quantised numbers are packed in."""
WHOLE = {"I64": "<i8", "I32": "<i4", "I8": "<i1"}
"""What only tables of model2vec are stored in."""
WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_FORMS = DTYPES | WHOLE | {WORDS: "<u4"}
_OTHER_FORMS = ("*.gguf", "*.onnx", "onnx/*.onnx", "tf_model.h5", "*.msgpack", "*.safetensors", "*.bin")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: `model.safetensors`, or the shards its index names."""
    single, index = folder / WHOLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
        if pickled is None:
            others = sorted(file.name for kind in _OTHER_FORMS for file in folder.glob(kind))
            raise ModelError(
                f"{folder} has no model.safetensors" + (f", and {others[0]} is not read" if others else "")
            )
        raise ModelError(
            f"{folder} has {pickled.name} and no model.safetensors: a pickle can run code when read, and is never "
            f"loaded here. Convert it once: impetus-worker convert --from-torch {shlex.quote(str(folder))}"
        )
    where = read_json(index, dict).get("weight_map", {})
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{index}: weight_map does not say by name which file a tensor is in")
    names = sorted(set(where.values()))
    if any("/" in name or name.startswith(".") for name in names):
        raise ModelError(f"{index} points outside its folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(f"{index} names shards that are missing: {', '.join(missing) or 'it names none'}")
    return [folder / name for name in names]


def read_tensors(file: Path) -> list[tuple[str, np.ndarray, str]]:
    """Name, array and stored form of each; raises `ModelError` for a file that is not whole."""
    found = []
    try:
        raw = np.memmap(file, dtype=np.uint8, mode="r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(raw[8:start].tobytes())
        end_of_last = 0
        for begin, end in sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"):
            if begin != end_of_last or end < begin:
                raise ValueError(f"its tensors do not lie one after the other at byte {begin}")
            end_of_last = end
        if start + end_of_last != len(raw):
            raise ValueError(f"it has {len(raw)} bytes, and its header tells of {start + end_of_last}")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = raw[start + begin : start + end]
            form = _FORMS.get(entry["dtype"])
            if form is not None:
                data = data.view(form).reshape(entry["shape"])
            # What is in another form is kept to be named: most such tensors are buffers that nobody asks for.
            found.append((name, data, str(entry["dtype"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
    return found
