"""Writes small files with torch into tests/data/torch/, and the same tensors as safetensors' own library writes them.

Run it only to add a form, in an environment of its own, because torch is no dependency of this project:

    pip install torch safetensors
    python scripts/recording/record_torch_files.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # see above
from safetensors.torch import load_file, save_file

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
FOLDER = DATA / "torch"


def tensors() -> dict[str, Any]:
    torch.manual_seed(1)
    whole = torch.randn(4, 6)
    layer = torch.nn.Linear(3, 2)
    return {
        "float32": whole,
        "tied": whole,
        "turned": whole.T,
        "part": whole[1:3, 2:],
        "float16": torch.randn(5).half(),
        "bfloat16": torch.randn(2, 3).bfloat16(),
        "float64": torch.randn(2).double(),
        "int64": torch.arange(7),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        **layer.state_dict(prefix="layer."),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.save(tensors(), FOLDER / "new.bin")
    torch.save(tensors(), FOLDER / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2).state_dict(), FOLDER / "state.bin")
    torch.save(torch.nn.Linear(3, 2), FOLDER / "module.bin")
    torch.save({"epoch": 3, "model": tensors()}, FOLDER / "checkpoint.bin")
    torch.save(load_file(DATA / "models" / "bge" / "model.safetensors"), FOLDER / "bge.bin")
    save_file(
        {name: each.detach().clone().contiguous() for name, each in tensors().items()}, FOLDER / "new.safetensors"
    )


if __name__ == "__main__":
    main()
