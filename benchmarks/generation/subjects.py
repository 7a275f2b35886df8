"""What is measured on: model folders, and prompts of a wanted length."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.models.make_tiny_model import SIZES, TEXT, make_tiny_model
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from .openblas import Blas

ROOT = Path(__file__).parents[2]
TINY_SAYS = ROOT / "tests" / "data" / "models" / "tiny-says"
_QUESTIONS = ROOT / "tests" / "data" / "questions.txt"
LONG_CONTEXT = 4096
_NO_TOKEN, _NEVER_SAID = 2**30, "<|never said|>"


@dataclass(frozen=True, slots=True)
class Subject:
    """One model, in the forms that the parts need."""

    name: str
    folder: Path
    """As it is: it ends its answers when it likes."""
    endless: Path
    """The same weights, and no token ends an answer: a job makes its `max_tokens`, on every side."""
    long: Path
    """One that reads prompts of 1,500 tokens, endless."""
    environment: dict[str, str]

    def long_name(self) -> str:
        return self.long.name.removesuffix("-endless")


def subjects(work: Path, blas: Blas, model: Path | None) -> list[Subject]:
    """The two models of the bench, or the one that the user named. `work`: a folder to make models in."""
    if model is not None:
        endless = made_endless(model, work)
        return [Subject(model.name, model, endless, endless, blas.environment)]
    tiny = make_tiny_model(work / "tiny-random", sizes=SIZES["tiny"]._replace(context=LONG_CONTEXT))
    larger = make_tiny_model(work / "30m-random", sizes=SIZES["30m"]._replace(context=LONG_CONTEXT))
    larger_endless = made_endless(larger, work)
    return [
        Subject("tiny-says", TINY_SAYS, made_endless(TINY_SAYS, work), made_endless(tiny, work), blas.environment),
        Subject("30m-random", larger, larger_endless, larger_endless, blas.environment),
    ]


def made_endless(folder: Path, work: Path) -> Path:
    """The model in `folder` with an end-of-text token that it can never choose; its weights are links."""
    made = work / f"{folder.name}-endless"
    made.mkdir()
    # mlx-lm ends an answer at any of these three files' tokens.
    ends = {
        "config.json": {"eos_token_id": [_NO_TOKEN]},
        "generation_config.json": {"eos_token_id": [_NO_TOKEN]},
        "tokenizer_config.json": {"eos_token": _NEVER_SAID},
    }
    for file in folder.iterdir():
        if file.name in ends:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) | ends[file.name]
            (made / file.name).write_text(json.dumps(config), encoding="utf-8")
        else:
            (made / file.name).symlink_to(file.resolve())
    return made


class Prompts:
    """Makes prompts of wanted lengths for one model; no two begin alike, and the same seed makes the same ones."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._chance = random.Random(f"{folder.name}-{seed}")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._words = sorted(set(TEXT.split()))

    def of(self, tokens: int) -> str:
        """A text of so many tokens, or one word more."""
        text = f"{self._chance.randrange(10**9)}"
        while len(self._tokenizer.encode(text).ids) < tokens:
            # Several words at a time while it is far too short: encoding is what takes the time.
            missing = tokens - len(self._tokenizer.encode(text).ids)
            text += " " + " ".join(self._chance.choice(self._words) for _ in range(max(1, missing // 12)))
        return text

    def between(self, least: int, most: int) -> str:
        return self.of(self._chance.randint(least, most))

    def payloads(self, count: int, mean_tokens: int) -> list[dict[str, Any]]:
        """Greedy requests: prompts of 8 to 60 tokens, answers of half to one and a half times `mean_tokens`."""
        return [
            {
                "prompt": self.between(8, 60),
                "max_tokens": self._chance.randint(max(1, mean_tokens // 2), max(1, 3 * mean_tokens // 2)),
                "temperature": 0.0,
            }
            for _ in range(count)
        ]


def questions() -> list[str]:
    """What tiny-says knows the answers of."""
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("Q: ") for line in lines if line.startswith("Q: ")]
