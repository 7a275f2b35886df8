"""The model as one multifunction `.mlpackage`: a function for every bucket, and every weight once.

Runs wherever coremltools does. The package needs macOS 15 or iOS 18, the first that know multifunction packages, and
says so in its metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.devices.coreml.calibration import ranges
from impetus_backends.embedding.devices.coreml.library import coremltools, quietly
from impetus_backends.embedding.devices.coreml.ops import MilOps, Parameters
from impetus_backends.embedding.devices.operations import INPUTS, Inputs
from impetus_backends.embedding.devices.packages.form import OUTPUT, check_lengths, input_shapes
from impetus_backends.embedding.encoder import embed
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.folder.config import EmbeddingConfig

FIRST_MACOS, FIRST_IOS = 15, 18
_MODEL = "Data/com.apple.CoreML/model.mlmodel"
# Everything is written as it shall be, in float16 and with its weights named: coremltools' ninety passes find nothing
# to improve, and check the whole program after each.
_PASSES = ("common::dead_code_elimination",)


def build(
    config: EmbeddingConfig,
    buckets: Sequence[Bucket],
    path: Path,
    *,
    mode: str = "none",
    calibration: Sequence[np.ndarray] = (),
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> None:
    """Writes the package to `path`, which must not exist. `progress` is told each step and the share then done.

    `calibration`: token rows of which the inputs of linear layers have their ranges in eight bits; none: these stay
    float16.

    Raises `BackendUnavailableError` where coremltools is missing or refuses the program, `ModelError` for bad files.
    """
    check_lengths(config, buckets, "Core ML")
    ct = coremltools()
    from coremltools.converters.mil.mil import Program

    reach = ranges(config, calibration, lambda share: progress("calibrating", 0.0)) if calibration else {}
    parameters = Parameters(open_weights(config), mode, reach)
    program = Program()
    program.export_as_multifunction = True
    program.default_function_name = buckets[0].function
    try:
        for done, bucket in enumerate(buckets):
            progress(f"function {bucket.function}", 0.7 * done / len(buckets))
            program.add_function(bucket.function, _function(ct, config, parameters, bucket))
        progress("writing the package", 0.7)
        with quietly():
            ct.convert(
                program,
                convert_to="mlprogram",
                # Float16 is written out already: this leaves every type as it is.
                compute_precision=ct.precision.FLOAT32,
                minimum_deployment_target=ct.target.macOS15,
                pass_pipeline=ct.PassPipeline(pass_names=list(_PASSES)),
                skip_model_load=True,
                package_dir=str(path),
            )
        stamp(path)
    except ModelError:
        raise
    except Exception as error:
        raise BackendUnavailableError(f"coremltools could not convert the model: {error}") from error
    progress("converted", 1.0)


def stamp(path: Path) -> None:
    """Writes into a package what it needs, and who wrote it: its user-defined metadata, which Xcode shows."""
    ct = coremltools()
    spec = ct.utils.load_spec(str(path))
    about = spec.description.metadata.userDefined
    about["first_macos"], about["first_ios"] = str(FIRST_MACOS), str(FIRST_IOS)
    about["written_by"] = f"impetus-batch, coremltools {ct.__version__}"
    (path / _MODEL).write_bytes(spec.SerializeToString())


def _function(ct: Any, config: EmbeddingConfig, parameters: Parameters, bucket: Bucket) -> Any:
    from coremltools.converters.mil.mil import Builder, Function, types

    # Its operations are attached when it is imported, which no type checker sees.
    mb: Any = Builder
    kinds = dict(zip(INPUTS, (types.int32, types.int32, types.fp32, types.fp32), strict=True))
    shapes = input_shapes(config, bucket)
    inputs = {name: mb.placeholder(shape=shapes[name], dtype=kind, name=name) for name, kind in kinds.items()}
    with Function(inputs, opset_version=ct.target.macOS15) as function:
        variables = Inputs(**{name: function.inputs[name] for name in kinds}, packed=bucket.packed)
        vectors = embed(MilOps(parameters, mb, types), config, variables)
        function.set_outputs([mb.identity(x=vectors, name=OUTPUT)])
    return function
