"""Makes a small random model of every family beyond BERT's, and records what sentence-transformers makes of it.

The models lie in tests/data/models/ in the true file layout, their vectors in tests/data/families.npz, and the rows
that transformers makes of contradicting tokenizer files in tests/data/tokenizers.npz, and vectors with prompts that no
file states in tests/data/prompts.npz. They show that the arithmetic and
the reading of the files are right, which needs no trained weights. Run it only to add a family, in an environment of
its own, because torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_family_vectors.py [NAME ...]

Without names it makes all of them anew, with other vocabularies: the trainers of tokenizers are not deterministic.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_reference_vectors import (  # type: ignore[import-not-found]  # beside this script
    DATA,
    TEXTS,
)

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
DECODER: dict[str, Any] = SIZES | {"num_hidden_layers": 3, "head_dim": 8, "rms_norm_eps": 1e-6}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "rope_theta": 10_000.0, "rms_norm_eps": 1e-6}
INSTRUCTION = "Instruct: find passages that answer\nQuery: "
ALL_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


class Family(NamedTuple):
    """One model: its configuration, its tokenizer and its modules."""

    model_type: str
    config: dict[str, Any]
    tokenizer: Any
    pooling: Any = "mean"
    include_prompt: bool = True
    dense: tuple[tuple[int, bool, str], ...] = ()
    normalise: bool = True
    prompts: dict[str, str] | None = None
    truncate_dim: int | None = None


def families() -> dict[str, Family]:
    return {
        "mpnet": Family("mpnet", SIZES | {"max_position_embeddings": 42}, _mpnet_tokenizer()),
        "modernbert": Family(
            "modernbert",
            SIZES | {"num_hidden_layers": 4, "local_attention": 8, "tie_word_embeddings": False},
            _byte_pairs("[CLS]", "[SEP]"),
            pooling="cls",
            prompts={"query": "search_query: ", "document": "search_document: "},
        ),
        "nomic": Family(
            "nomic_bert",
            SIZES,
            _word_pieces(),
            prompts={"query": "search_query: ", "document": "search_document: "},
        ),
        "gte": Family("gte", SIZES | {"type_vocab_size": 1}, _word_pieces(), pooling="cls"),
        "t5": Family(
            "t5",
            {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "relu"},
            _unigrams("", "</s>"),
            dense=((16, False, "Identity"),),
        ),
        "mt5": Family(
            "mt5",
            {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
            | {"relative_attention_max_distance": 20},
            _unigrams("", "</s>"),
        ),
        "qwen3": Family(
            "qwen3",
            DECODER | {"num_key_value_heads": 2, "rope_theta": 1_000_000.0},
            _byte_pairs("", "<|endoftext|>", padding_side="left"),
            pooling="lasttoken",
            prompts={"query": INSTRUCTION, "document": ""},
        ),
        "qwen2": Family("qwen2", SIZES | GROUPED, _byte_pairs("", "<|endoftext|>"), prompts={"query": INSTRUCTION}),
        "mistral": Family(
            "mistral",
            DECODER | GROUPED | {"sliding_window": 8},
            _byte_pairs("<s>", "</s>", padding_side="left"),
            pooling="lasttoken",
            prompts={"query": INSTRUCTION},
        ),
        "llama": Family("llama", DECODER | GROUPED, _byte_pairs("<s>", "</s>")),
        "eurobert": Family("eurobert", DECODER | GROUPED, _byte_pairs("<s>", "</s>")),
        "ernie": Family("ernie", SIZES | {"use_task_id": True, "hidden_act": "relu"}, _word_pieces()),
        "gemma": Family(
            "gemma3_text",
            DECODER
            | {"num_key_value_heads": 1, "sliding_window": 8, "use_bidirectional_attention": True}
            | {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            _unigrams("<bos>", "<eos>"),
            dense=((24, False, "Identity"), (16, False, "Identity")),
            prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        ),
        "albert": Family(
            "albert",
            SIZES
            | {"embedding_size": 8, "num_hidden_layers": 3, "num_hidden_groups": 2, "hidden_act": "gelu_new"}
            | {"inner_group_num": 2},
            _unigrams("[CLS]", "[SEP]"),
        ),
        # DeBERTa as its third version is made.
        "deberta": Family(
            "deberta-v2",
            SIZES
            | {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
            | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8, "type_vocab_size": 0},
            _unigrams("[CLS]", "[SEP]"),
        ),
        "static": Family("static", {}, _word_pieces(), prompts={"query": "a question about foxes: "}),
        "camembert": Family(
            "camembert",
            SIZES | {"max_position_embeddings": 42, "type_vocab_size": 1, "hidden_act": "relu"},
            _unigrams("<s>", "</s>"),
            pooling=ALL_POOLINGS,
            normalise=False,
        ),
        "electra": Family(
            "electra",
            SIZES | {"embedding_size": 8, "hidden_act": "gelu_new"},
            _word_pieces(),
            pooling=ALL_POOLINGS,
            include_prompt=False,
            dense=((20, True, "Tanh"),),
            prompts={"query": "a question about foxes: "},
            truncate_dim=12,
        ),
    }


def main() -> None:
    recorded = dict(np.load(DATA / "families.npz")) if sys.argv[1:] else {}
    for name, family in families().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = DATA / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, family)
        _record(recorded, name, folder, tuple(family.prompts or ()))
    np.savez_compressed(DATA / "families.npz", **recorded)
    np.savez_compressed(DATA / "prompts.npz", **_prompted())  # type: ignore[arg-type]  # as below
    np.savez_compressed(DATA / "tokenizers.npz", **_contradictions())  # type: ignore[arg-type]  # numpy's stub takes a bool first
    print(f"wrote {len(recorded)} arrays to {DATA}", file=sys.stderr)


def _make(folder: Path, family: Family) -> None:
    import torch  # see above
    import transformers
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]  # see above
    from sentence_transformers.models import (  # type: ignore[import-not-found]  # see above
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )
    from transformers import AutoConfig, AutoModel

    tokenizer = family.tokenizer
    if family.model_type == "static":
        _make_static(folder, family)
        return
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    ids |= {"decoder_start_token_id": ids["pad_token_id"]} if family.model_type in ("t5", "mt5") else {}
    config = AutoConfig.for_model(family.model_type, **family.config, **ids, vocab_size=len(tokenizer))
    torch.manual_seed(1)
    # Of the models of two halves, sentence-transformers takes the first.
    halves = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
    make = getattr(transformers, halves[family.model_type]) if family.model_type in halves else AutoModel.from_config
    model = make(config).eval()
    with torch.no_grad():
        # The usual beginnings, zero biases and unit scales, would hide a bias or a scale that is never applied.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with tempfile.TemporaryDirectory() as start:
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
        modules = [Transformer(start), Pooling(16, family.pooling, include_prompt=family.include_prompt)]
        width = modules[1].get_embedding_dimension()
        for outputs, bias, activation in family.dense:
            kind = getattr(torch.nn, activation)
            modules.append(Dense(width, outputs, bias=bias, activation_function=kind()))
            width = outputs
        modules += [Normalize()] if family.normalise else []
        whole = SentenceTransformer(modules=modules, prompts=family.prompts, truncate_dim=family.truncate_dim)
        whole.save(str(folder), create_model_card=False)


def _make_static(folder: Path, family: Family) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding

    torch.manual_seed(1)
    table = StaticEmbedding(family.tokenizer, embedding_weights=torch.randn(len(family.tokenizer), 16))
    whole = SentenceTransformer(modules=[table, Normalize()], prompts=family.prompts)
    whole.save(str(folder), create_model_card=False)


def _record(recorded: dict[str, np.ndarray], name: str, folder: Path, prompts: tuple[str, ...]) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    for prompt in (None, *prompts):
        recorded[f"{name}/{prompt or 'plain'}"] = model.encode(list(TEXTS), prompt_name=prompt, batch_size=5)
    made = [model.tokenize([text])["input_ids"].numpy().astype(np.int32) for text in TEXTS]
    rows = [ids if ids.ndim == 1 else ids[0] for ids in made]
    recorded[f"{name}/ids"] = np.concatenate(rows)
    recorded[f"{name}/lengths"] = np.array([len(row) for row in rows])


#: Prompts of a request's own: of a model that does not pool them, one that states others, and one with a default.
PROMPTS = {"electra": "of foxes and 狐狸: ", "qwen3": "Instruct: find the fox\nQuery: ", "distilbert": ""}


def _prompted() -> dict[str, np.ndarray]:
    from sentence_transformers import SentenceTransformer

    found: dict[str, np.ndarray] = {"prompts": np.array(json.dumps(PROMPTS))}
    for name, prompt in PROMPTS.items():
        model = SentenceTransformer(str(DATA / "models" / name), device="cpu")
        found[name] = model.encode(list(TEXTS), prompt=prompt, batch_size=5)
    return found


#: What a tokenizer_config.json may say against the tokenizer.json beside it: by the small model, and each case's keys.
CONTRADICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "cased": ("bge", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "accents": ("bge", {"tokenizer_class": "BertTokenizer", "strip_accents": False}),
    "chinese": ("bge", {"tokenizer_class": "BertTokenizerFast", "tokenize_chinese_chars": False}),
    "lowered": ("distilbert", {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True}),
    "stripped": ("distilbert", {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True}),
    "space": ("roberta", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}),
    "ignored": ("bge", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}),
}


def _contradictions() -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    found: dict[str, np.ndarray] = {"cases": np.array(json.dumps(CONTRADICTIONS))}
    for name, (model, keys) in CONTRADICTIONS.items():
        with tempfile.TemporaryDirectory() as copied:
            folder = shutil.copytree(DATA / "models" / model, Path(copied) / "model")
            file = folder / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | keys))
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            rows = [np.array(tokenizer(text, truncation=True)["input_ids"], np.int32) for text in TEXTS]
        found[f"{name}/ids"] = np.concatenate(rows)
        found[f"{name}/lengths"] = np.array([len(row) for row in rows])
    return found


def _mpnet_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import MPNetTokenizer

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
    trained.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=240, special_tokens=special))
    return MPNetTokenizer(vocab=trained.get_vocab(), model_max_length=40)


def _word_pieces() -> Any:
    from record_reference_vectors import _word_pieces as word_pieces
    from transformers import PreTrainedTokenizerFast

    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "mask", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=word_pieces(lowercase=True), model_max_length=40, **names)


def _byte_pairs(first: str, last: str, padding_side: str = "right") -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", *filter(None, (first, last)), "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": last} | ({"cls_token": first} if first else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=_framed(tokenizer, first, last), model_max_length=40, padding_side=padding_side, **names
    )


def _unigrams(first: str, last: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = [*filter(None, [first]), "<pad>", last, "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=240, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([text[:500] for text in TEXTS], trainer)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": last} | ({"bos_token": first} if first else {})
    return PreTrainedTokenizerFast(tokenizer_object=_framed(tokenizer, first, last), model_max_length=40, **names)


def _framed(tokenizer: Any, first: str, last: str) -> Any:
    from tokenizers import processors

    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    single = " ".join(filter(None, (first, "$A", last)))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer


if __name__ == "__main__":
    main()
