from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.generation.models.loader import CACHE_LIMIT_BYTES, load
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


def test_loading_leaves_the_limit_on_open_files_alone(run_python: Any, loaded: Any, tiny_folder: Path) -> None:
    printed = run_python(
        "import resource\n"
        "from pathlib import Path\n"
        "from impetus_backends.generation.models.loader import load\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))  # mlx-lm asks for (2048, 4096)\n"
        "before = resource.setrlimit\n"
        f"load(Path({str(tiny_folder)!r}))\n"
        "assert resource.setrlimit is before\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert printed == "(512, 1024)"


def test_importing_the_package_imports_no_mlx(run_python: Any) -> None:
    printed = run_python(
        "import sys\n"
        "import impetus_backends.generation.engine\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    assert printed == "[]"


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(BackendUnavailableError, match=r"mlx_lm.*pip install 'impetus-batch\[mlx\]'"):
        load(tiny_folder)


def test_a_transformers_that_was_never_tried_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.10.2")
    with pytest.raises(ModelError, match=r"transformers 5\.10\.2 .* pip install 'transformers>=5\.23'"):
        load(tiny_folder)


def test_the_model_is_described_by_its_files(loaded: LoadedModel) -> None:
    assert loaded.context_tokens == 1024
    assert loaded.precision == "float32"
    assert len(loaded.fingerprint) == 16
    assert loaded.note == "random weights, made for tests: its text means nothing"


def test_freed_memory_kept_for_reuse_is_bounded(loaded: LoadedModel, tiny_folder: Path) -> None:
    import mlx.core as mx

    load(tiny_folder)
    assert mx.set_cache_limit(CACHE_LIMIT_BYTES) == CACHE_LIMIT_BYTES


def test_the_fingerprint_follows_weights_and_configuration(
    loaded: LoadedModel, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    assert load(make_tiny_model(tmp_path / "same")).fingerprint == loaded.fingerprint
    assert load(make_tiny_model(tmp_path / "other", seed=1)).fingerprint != loaded.fingerprint
    changed = change_config(make_tiny_model(tmp_path / "changed"), max_position_embeddings=512)
    assert load(changed).fingerprint != loaded.fingerprint


def test_a_quantised_model_says_how_it_is_quantised(loaded: Any, tiny_folder: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    folder = shutil.copytree(tiny_folder, tmp_path / "quantised")
    model, config = load_model(folder)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    (folder / "model.safetensors").unlink()
    save_model(folder, model)
    save_config(config, folder / "config.json")
    quantised = load(folder)
    assert quantised.precision == "4-bit affine (groups of 32)"
    assert quantised.note == loaded.note


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 55}}, 55),
        ({"max_position_embeddings": None}, 1024),
    ],
)
def test_the_context_length_is_read_from_the_configuration_or_else_the_tokenizer(
    loaded: Any, tiny_folder: Path, tmp_path: Path, changes: dict[str, Any], expected: int
) -> None:
    folder = change_config(shutil.copytree(tiny_folder, tmp_path / "model"), **changes)
    assert load(folder).context_tokens == expected


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_for_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="no_such_model")


def weights_of_another_shape(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)


@pytest.mark.parametrize(
    "harm",
    [
        no_folder,
        no_weights,
        cut_weights,
        no_tokenizer,
        broken_tokenizer,
        broken_configuration,
        list_for_configuration,
        unknown_architecture,
        weights_of_another_shape,
    ],
)
def test_a_broken_model_folder_is_one_sentence(
    loaded: Any, tiny_folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    harm(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_only_another_device_can_run_is_refused_in_one_sentence(
    loaded: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models import llama

    def call(*args: Any) -> Any:
        raise RuntimeError("[metal_kernel] No Metal back-end.")

    monkeypatch.setattr(llama.Model, "__call__", call)
    with pytest.raises(ModelError, match=r"^mlx-lm cannot run the model in .* on this device: .* No Metal back-end"):
        load(tiny_folder)


def test_code_that_comes_with_a_model_is_never_run(loaded: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = change_config(shutil.copytree(tiny_folder, tmp_path / "hostile"), model_file="hostile.py")
    (folder / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_tiny_model_script_explains_itself_and_labels_what_it_makes(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "models" / "make_tiny_model.py"
    helped = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "random weights" in helped.stdout
    made = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert "means nothing" in made.stdout
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 600_000


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    config = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(config))
    return folder
