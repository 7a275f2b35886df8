"""What the files of a model without a transformer say: a table of tokens' vectors, whose mean is a text's (model2vec's
and StaticEmbedding's, https://sbert.net/docs/package_reference/sentence_transformer/models.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.folder.facts import refuse_unless
from impetus_backends.embedding.folder.shapes import STATIC, TABLES, EncoderConfig
from impetus_backends.embedding.folder.tensors import read_tensors, weight_files
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.files import Reader

_LONGEST = 8192
"""Its texts end nowhere: so many tokens are enough."""
_FOLDED = ("mapping", "weights")
"""By which model2vec makes rows of the table smaller and fewer."""


def read_table(reader: Reader, folder: Path) -> EncoderConfig:
    """Raises `ModelError` for what cannot be read as such a table."""
    shapes = {name: array.shape for file in weight_files(folder) for name, array, _ in read_tensors(file)}
    for name in _FOLDED:
        if name in shapes:
            raise ModelError(f"the weights in {folder} have {name}, and tables that are folded up so are not read")
    shape = next((shapes[name] for name in TABLES if name in shapes), ())
    if len(shape) != 2:
        raise ModelError(f"the weights in {folder} have no table: neither of {' and '.join(TABLES)} is one")
    file = folder / "tokenizer.json"
    cut = reader.object(file).get("truncation") or {}
    refuse_unless(file, cut, direction=(None, "Right"))
    return EncoderConfig(
        STATIC,
        vocab_size=shape[0],
        hidden_size=shape[1],
        layers=0,
        heads=1,
        intermediate_size=0,
        norm_eps=0.0,
        position_rows=min(int(cut.get("max_length", _LONGEST)), _LONGEST),
        padding_id=0,
    )
