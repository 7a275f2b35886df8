"""Makes a small random reranker of each family, and records what sentence-transformers' CrossEncoder makes of it.

The models lie in tests/data/rerankers/, in the layouts that people publish: a bare `config.json` as most rerankers
have, or with `modules.json`, as sentence-transformers saves them from 5.4 on. Scores, rows and token types lie in
tests/data/rerankers.npz. They show that the arithmetic and the reading of the files are right, which needs no trained
weights. Run it only to add a family, in an environment of its own, because torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_reranker_scores.py [NAME ...]

Without names it makes all of them anew, with other vocabularies: the trainers of tokenizers are not deterministic.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_family_vectors import SIZES  # type: ignore[import-not-found]  # beside this script
from record_reference_vectors import DATA, TEXTS  # type: ignore[import-not-found]  # beside this script

QUERIES = ("fox", "Which animal jumps over the lazy dog, and why does it?", "ordinary words and sentences " * 30)
_IDENTITY = "torch.nn.modules.linear.Identity"


class Reranker(NamedTuple):
    """One model: its configuration, its tokenizer, and how its folder says what its scores are."""

    model_type: str
    config: dict[str, Any]
    tokenizer: Any
    whole: bool = False
    """Whether sentence-transformers saves it, with `modules.json`."""
    raw: bool = False
    """Whether such a one says that scores are logits."""


def rerankers() -> dict[str, Reranker]:
    rooted = SIZES | {"max_position_embeddings": 42, "type_vocab_size": 1}
    return {
        # ms-marco-MiniLM: logits for scores, which config.json says.
        "bert": Reranker(
            "bert", SIZES | {"sentence_transformers": {"activation_fn": _IDENTITY, "version": "4.1.0"}}, _word_pieces()
        ),
        # bge-reranker-v2-m3: nothing said, so a sigmoid.
        "xlm-roberta": Reranker("xlm-roberta", rooted, _unigrams()),
        "camembert": Reranker("camembert", rooted | {"hidden_act": "relu"}, _unigrams()),
        "roberta": Reranker("roberta", rooted, _byte_pairs("<s>", "</s>", "</s> </s>"), whole=True, raw=True),
        "distilbert": Reranker(
            "distilbert",
            {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "max_position_embeddings": 40}
            | {"sbert_ce_default_activation_function": _IDENTITY},
            _word_pieces(),
        ),
        "mpnet": Reranker("mpnet", SIZES | {"max_position_embeddings": 42}, _mpnet()),
        "electra": Reranker("electra", SIZES | {"embedding_size": 8}, _word_pieces(), whole=True),
        "albert": Reranker("albert", SIZES | {"embedding_size": 8, "hidden_act": "gelu_new"}, _word_pieces()),
        # mxbai-rerank-base-v1: DeBERTa as its third version is made.
        "deberta-v2": Reranker(
            "deberta-v2",
            SIZES
            | {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
            | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8, "type_vocab_size": 0},
            _unigrams(),
        ),
        "modernbert": Reranker(
            "modernbert",
            SIZES | {"num_hidden_layers": 4, "local_attention": 8, "classifier_pooling": "mean", "norm_bias": False},
            _byte_pairs("[CLS]", "[SEP]", "[SEP]"),
            whole=True,
        ),
        "gte": Reranker("gte", SIZES | {"type_vocab_size": 1}, _unigrams()),
    }


def main() -> None:
    recorded = dict(np.load(DATA / "rerankers.npz")) if sys.argv[1:] else {}
    for name, reranker in rerankers().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = DATA / "rerankers" / name
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, reranker)
        _record(recorded, name, folder)
    recorded["queries"] = np.array(QUERIES)
    np.savez_compressed(DATA / "rerankers.npz", **recorded)
    print(f"wrote {len(recorded)} arrays to {DATA}", file=sys.stderr)


def _make(folder: Path, reranker: Reranker) -> None:
    import torch  # see above
    from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]  # see above
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = reranker.tokenizer
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos", "cls", "sep")}
    config = AutoConfig.for_model(
        reranker.model_type, **reranker.config, **ids, vocab_size=len(tokenizer), num_labels=1
    )
    torch.manual_seed(len(reranker.model_type))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        # The usual beginnings, zero biases and unit scales, would hide a bias or a scale that is never applied.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with tempfile.TemporaryDirectory() as start:
        place = start if reranker.whole else str(folder)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        if reranker.whole:
            activation = torch.nn.Identity() if reranker.raw else None
            CrossEncoder(start, device="cpu", activation_fn=activation).save_pretrained(
                str(folder), create_model_card=False
            )


def _record(recorded: dict[str, np.ndarray], name: str, folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    pairs = [(query, text) for query in QUERIES for text in TEXTS]
    recorded[f"{name}/scores"] = model.predict(pairs, batch_size=5)
    # In lists: of a single pair an empty second text would be taken for none.
    encoded = model.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True)
    recorded[f"{name}/lengths"] = np.array(list(map(len, encoded["input_ids"])))
    for kind, key in (("ids", "input_ids"), ("types", "token_type_ids")):
        if key in encoded:
            recorded[f"{name}/{kind}"] = np.concatenate([np.array(row, np.int32) for row in encoded[key]])


def _word_pieces() -> Any:
    from record_reference_vectors import _word_pieces as word_pieces
    from transformers import BertTokenizerFast

    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "mask", "cls", "sep")}
    tokenizer = _paired(word_pieces(lowercase=True), "[CLS]", "[SEP]", "[SEP]", second=1)
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names)


def _unigrams() -> Any:
    from record_reference_vectors import _unigrams as unigrams
    from transformers import PreTrainedTokenizerFast

    names = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=_paired(unigrams(), "<s>", "</s>", "</s> </s>"), model_max_length=40, **names
    )


def _byte_pairs(first: str, last: str, between: str) -> Any:
    from record_family_vectors import _byte_pairs as byte_pairs

    tokenizer = byte_pairs(first, last)
    tokenizer.backend_tokenizer.post_processor = _template(tokenizer.backend_tokenizer, first, last, between, second=1)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _mpnet() -> Any:
    from record_family_vectors import _mpnet_tokenizer

    return _mpnet_tokenizer()


def _paired(tokenizer: Any, first: str, last: str, between: str, second: int = 0) -> Any:
    tokenizer.post_processor = _template(tokenizer, first, last, between, second)
    return tokenizer


def _template(tokenizer: Any, first: str, last: str, between: str, second: int) -> Any:
    from tokenizers import processors

    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    pair = f"{first}:0 $A:0 {between} $B:{second} {last}:{second}"
    return processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=ends)


if __name__ == "__main__":
    main()
