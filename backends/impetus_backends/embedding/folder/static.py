"""What the files of a model without a transformer say: a table of tokens' vectors, whose mean is a text's (model2vec's
and StaticEmbedding's, https://sbert.net/docs/package_reference/sentence_transformer/models.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.folder.stored.tensors import WHOLE, read_tensors, weight_files
from impetus_backends.embedding.folder.transformer.facts import refuse_unless
from impetus_backends.embedding.folder.transformer.shapes import STATIC, TABLES, EncoderConfig
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.files import Reader

_LONGEST = 8192
"""Its texts end nowhere: so many tokens are enough."""
MAPPING, SHARES = "mapping", "weights"
"""By which model2vec has tokens share rows of the table, and counts some for more than others."""


def read_table(reader: Reader, folder: Path) -> EncoderConfig:
    """Raises `ModelError` for what cannot be read as such a table."""
    stored = {name: (array, form) for file in weight_files(folder) for name, array, form in read_tensors(file)}
    table = next((name for name in TABLES if name in stored and stored[name][0].ndim == 2), None)
    if table is None:
        raise ModelError(f"the weights in {folder} have no table: neither of {' and '.join(TABLES)} is one")
    rows, width = stored[table][0].shape
    beside = [name for name in (MAPPING, SHARES) if name in stored]
    if beside and table == TABLES[0]:
        raise ModelError(f"the weights in {folder} have {beside[0]} beside {table}, which is of another library")
    if MAPPING in stored:
        mapping, form = stored[MAPPING]
        if form not in WHOLE or mapping.ndim != 1 or not mapping.size or mapping.min() < 0 or mapping.max() >= rows:
            raise ModelError(f"the weights in {folder} have a mapping that does not name one of {rows} rows a token")
        rows = len(mapping)
    if SHARES in stored and stored[SHARES][0].shape != (rows,):
        raise ModelError(
            f"the weights in {folder} do not fit: {SHARES} are {stored[SHARES][0].shape}, of {rows} tokens"
        )
    file = folder / "tokenizer.json"
    cut = reader.object(file).get("truncation") or {}
    refuse_unless(file, cut, direction=(None, "Right"))
    return EncoderConfig(
        STATIC,
        vocab_size=rows,
        hidden_size=width,
        layers=0,
        heads=1,
        intermediate_size=0,
        norm_eps=0.0,
        position_rows=min(int(cut.get("max_length", _LONGEST)), _LONGEST),
        padding_id=0,
    )
