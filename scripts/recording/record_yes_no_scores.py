"""Makes small random models in the layouts of Qwen3-Reranker and of mxbai-rerank-v2, and records their scores.

They lie in tests/data/rerankers/qwen3 and qwen2, as sentence-transformers integrates such models (`LogitScore`, and a
chat template for a query and a document). In tests/data/yes_no.npz `scores` and `qwen2/scores` are what CrossEncoder's
`predict` makes, and `card` what the code on Qwen3-Reranker's model card makes in transformers, of the same weights and
with nothing but `config.json`, weights and tokenizer. Run it only to make a model anew, in an environment of its own,
because torch is no dependency of this project:

    pip install torch sentence-transformers
    python scripts/recording/record_yes_no_scores.py [qwen3] [qwen2]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_family_vectors import DECODER, GROUPED, SIZES  # type: ignore[import-not-found]  # beside this script
from record_reference_vectors import DATA, TEXTS  # type: ignore[import-not-found]  # beside this script
from record_reranker_scores import QUERIES  # type: ignore[import-not-found]  # beside this script

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TEMPLATE = (
    PREFIX.replace("\n", "{{ '\\n' }}")
    + "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first }}{{ '\\n' }}"
    + "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}{{ '\\n' }}"
    + "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    + "<|im_end|>{{ '\\n' }}{% if add_generation_prompt %}"
    + SUFFIX.partition("\n")[2].replace("\n", "{{ '\\n' }}")
    + "{% endif %}"
)
LONGEST = 280


class Asked(NamedTuple):
    """One model: its configuration, what it is asked, and which words it answers with."""

    config: dict[str, Any]
    template: str
    words: tuple[str, str]


MODELS = {
    "qwen3": Asked(DECODER | {"num_key_value_heads": 2, "rope_theta": 1_000_000.0}, TEMPLATE, ("yes", "no")),
    # What comes after the document is no special token, and may share one with it.
    "qwen2": Asked(
        SIZES | GROUPED,
        "query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
        "document: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}{{ ' \\n' }}"
        "Is it relevant? 1 or 0: ",
        ("1", "0"),
    ),
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FOLDERS = DATA / "rerankers"


def main() -> None:
    file = DATA / "yes_no.npz"
    recorded = dict(np.load(file)) if file.exists() else {}
    for name in sys.argv[1:] or MODELS:
        shutil.rmtree(FOLDERS / name, ignore_errors=True)
        _make(name, MODELS[name])
        if name == "qwen3":
            recorded |= {"scores": _by_cross_encoder(name), "card": _by_the_model_card(FOLDERS / name)}
        else:
            recorded[f"{name}/scores"] = _by_cross_encoder(name)
    np.savez_compressed(file, **recorded)
    print({name: (scores.min(), scores.max()) for name, scores in recorded.items()}, file=sys.stderr)


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*TEXTS, *["yes no", PREFIX, INSTRUCTION, "<Query>: <Document>: "] * 20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=LONGEST,
    )


def _make(name: str, model_of: Asked) -> None:
    import torch  # see above
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer()
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos")}
    sizes = model_of.config | {"max_position_embeddings": LONGEST}
    config = AutoConfig.for_model(name, **sizes, **ids, vocab_size=len(tokenizer), tie_word_embeddings=True)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            # The last token is always the same: what it finds where it looks must count for more than what it is.
            parameter.add_(torch.randn_like(parameter) * (0.7 if "_proj" in part else 0.3))
    folder = FOLDERS / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(list(model_of.words))
    kinds = (
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
    )
    forward = {"method": "forward", "method_output_name": "logits"}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)
        ],
        "1_LogitScore/config.json": {"true_token_id": yes, "false_token_id": no},
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
            "module_output_name": "causal_logits",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "prompts": {"web_search": INSTRUCTION},
            "default_prompt_name": "web_search",
            "activation_fn": "torch.nn.modules.linear.Identity",
        },
    }
    (folder / "1_LogitScore").mkdir()
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(model_of.template)


def _by_cross_encoder(name: str) -> np.ndarray:
    from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]  # see above

    model = CrossEncoder(str(FOLDERS / name), device="cpu")
    scores: np.ndarray = model.predict([(query, text) for query in QUERIES for text in TEXTS], batch_size=5)
    return scores


def _by_the_model_card(folder: Path) -> np.ndarray:
    """As https://huggingface.co/Qwen/Qwen3-Reranker-0.6B describes it, one pair at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prefix, suffix = (tokenizer.encode(text, add_special_tokens=False) for text in (PREFIX, SUFFIX))
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    scores = []
    for query in QUERIES:
        for text in TEXTS:
            asked = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {text}"
            room = LONGEST - len(prefix) - len(suffix)
            middle = tokenizer.encode(asked, add_special_tokens=False, truncation="longest_first", max_length=room)
            with torch.no_grad():
                logits = model(torch.tensor([prefix + middle + suffix])).logits[0, -1]
            scores.append(torch.softmax(logits[[no, yes]], dim=0)[1].item())
    return np.array(scores, dtype=np.float32)


if __name__ == "__main__":
    main()
