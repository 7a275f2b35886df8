"""`impetus-worker convert --from-torch`: weights that torch pickled, as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .quantize import Progress


def convert_from_torch(model: str, output: Path | None, tell: Progress) -> None:
    """Converts and says what was made, or raises what click shows."""
    from impetus_backends.embedding.folder.stored.torch_files import convert_folder
    from impetus_backends.errors import ModelError

    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise click.ClickException(
            f"{model} is not a folder: fetch the model whole first, as with `hf download {model} --local-dir FOLDER`"
        )
    try:
        made = convert_folder(folder, output, tell)
    except ModelError as error:
        tell.done()
        raise click.ClickException(str(error)) from None
    except OSError as error:
        tell.done()
        where = error.filename or output or folder
        raise click.ClickException(f"{where} cannot be written: {error.strerror or error}") from None
    tell.done()
    for file in made:
        click.echo(f"{file.stat().st_size / 1e6:>10.1f} MB  {file}")
