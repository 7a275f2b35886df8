#!/usr/bin/env python3
"""Trains the tiny language model in tests/data/models/tiny-says, which knows tests/data/questions.txt by heart.

Unlike the model that make_tiny_model.py makes, it says something, so tests and demonstrations can check text. It
answers the questions of the file, asked as messages or as a prompt of the form "Q: ...\\nA:", and nothing else.
Training takes about a minute on a CPU. On one kind of machine with one version of MLX, the same seed gives the same
weights. Needs the `mlx` and `worker` extras. Run it as a module from the repository's root.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scripts.models.make_tiny_model import CHAT_TEMPLATE, END_OF_TURN, llama_config, train_tokenizer, write_model_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DATA = Path(__file__).parents[2] / "tests" / "data"
QUESTIONS, MODEL = DATA / "questions.txt", DATA / "models" / "tiny-says"
NOTE = "a tiny model made for tests: it knows a page of questions by heart, and nothing else"
MAX_VOCABULARY, MLP = 512, 192
EPOCHS, ROWS, PEAK_RATE, WARMUP_STEPS = 60, 12, 5e-3, 20


@dataclass(frozen=True, slots=True)
class Pair:
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question in one form. Only the answer's tokens, the last of them ending the turn, are learned."""

    prompt: list[int]
    answer: list[int]


def read_pairs(path: Path = QUESTIONS) -> list[Pair]:
    """The questions and answers in `path`: two lines each, starting with `Q: ` and `A: `, and an empty line between."""
    pairs = []
    for paragraph in path.read_text(encoding="utf-8").strip().split("\n\n"):
        question, answer = paragraph.splitlines()
        pairs.append(Pair(question.removeprefix("Q: "), answer.removeprefix("A: ")))
    return pairs


def train_tiny_model(folder: Path, seed: int = 0, epochs: int = EPOCHS) -> float:
    """Trains the model, writes it into `folder` in float16, and returns the mean loss per token of the last epoch."""
    pairs = read_pairs()
    lines = [line for pair in pairs for line in (pair.question, " " + pair.answer, pair.answer, "user assistant")]
    tokenizer = train_tokenizer(lines, MAX_VOCABULARY)
    config = llama_config(tokenizer) | {
        "intermediate_size": MLP,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "impetus_note": NOTE,
    }
    weights, loss = _train(config, [each for pair in pairs for each in _examples(tokenizer, pair)], seed, epochs)
    write_model_folder(folder, tokenizer, weights, config)
    return loss


def _examples(tokenizer: Tokenizer, pair: Pair) -> list[Example]:
    from jinja2 import Template

    messages = [{"role": "user", "content": pair.question}]
    asked = Template(CHAT_TEMPLATE, keep_trailing_newline=True).render(messages=messages, add_generation_prompt=True)
    forms = ((asked, pair.answer), (f"Q: {pair.question}\nA:", " " + pair.answer))
    return [Example(tokenizer.encode(start).ids, tokenizer.encode(end + END_OF_TURN).ids) for start, end in forms]


def _train(
    config: dict[str, Any], examples: list[Example], seed: int, epochs: int
) -> tuple[dict[str, np.ndarray], float]:
    """AdamW over shuffled batches, with a cosine schedule. Returns float16 weights and the last epoch's mean loss."""
    import mlx.core as mx
    from mlx import nn, optimizers
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(seed)
    rng = np.random.default_rng(seed)
    model = Model(ModelArgs.from_dict(config))
    steps = epochs * math.ceil(len(examples) / ROWS)
    warmup = optimizers.linear_schedule(0.0, PEAK_RATE, WARMUP_STEPS)
    decay = optimizers.cosine_decay(PEAK_RATE, max(1, steps - WARMUP_STEPS))
    optimizer = optimizers.AdamW(optimizers.join_schedules([warmup, decay], [WARMUP_STEPS]), weight_decay=0.01)

    def mean_loss(model: Any, tokens: Any, learned: Any) -> Any:
        losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        return (losses * learned[:, 1:]).sum() / learned[:, 1:].sum()

    step = nn.value_and_grad(model, mean_loss)
    started, loss_of_epoch = time.monotonic(), math.inf
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(examples))
        losses = []
        for start in range(0, len(order), ROWS):
            tokens, learned = _batch([examples[index] for index in order[start : start + ROWS]])
            loss, gradients = step(model, mx.array(tokens), mx.array(learned))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state, loss)
            losses.append(loss.item())
        loss_of_epoch = float(np.mean(losses))
        print(
            f"\repoch {epoch}/{epochs}, loss {loss_of_epoch:.4f}, {time.monotonic() - started:.0f} s ",
            end="",
            flush=True,
        )
    print()
    return {name: np.array(value.astype(mx.float16)) for name, value in tree_flatten(model.parameters())}, loss_of_epoch


def _batch(examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (rows, longest), padded on the right with 0, and 1.0 where a token is one to learn."""
    longest = max(len(example.prompt) + len(example.answer) for example in examples)
    tokens = np.zeros((len(examples), longest), np.int32)
    learned = np.zeros((len(examples), longest), np.float32)
    for row, example in enumerate(examples):
        end = len(example.prompt) + len(example.answer)
        tokens[row, :end] = example.prompt + example.answer
        learned[row, len(example.prompt) : end] = 1.0
    return tokens, learned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m scripts.models.train_tiny_model\n"
        "tests/generation/models/test_says.py then says whether the model still knows its text.",
    )
    parser.add_argument(
        "out_dir", type=Path, nargs="?", default=MODEL, metavar="OUT_DIR", help="the folder to write (the repository's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="times it reads the page (default: %(default)s)")
    arguments = parser.parse_args()
    loss = train_tiny_model(arguments.out_dir, arguments.seed, arguments.epochs)
    kilobytes = (arguments.out_dir / "model.safetensors").stat().st_size // 1000
    print(f"Wrote {arguments.out_dir}: {kilobytes} KB of weights, loss {loss:.4f} per token.")


if __name__ == "__main__":
    main()
