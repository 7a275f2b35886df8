#!/usr/bin/env python3
"""Compares the running batch with mlx-lm alone, on a small random model of every family, and writes docs/models.md.

Each model is loaded from a folder in its family's true layout and served by the engine as a worker would: how it
batches is found out by the self-test at load. Then texts of different lengths are asked for at different times: some
are read together and some in several pieces, some begin as others did and find that in memory, the longer ones go
beyond what windows see, they leave one by one, and one is cancelled. Each text must be the one that mlx-lm makes of the
same prompt with nothing beside it. Runs on the CPU, in float32, where neither side has a reason to round otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scripts.models.core_ai_page import write_core_ai
from scripts.models.family_models import FAMILIES, write_family
from scripts.models.models_page import write_part

from impetus_backends.errors import BackendError
from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.protocol import Generated, GenerationWork, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.protocol import Answer

PIECE_TOKENS, ROWS = 96, 6
_CLOSE = 1e-3
"""How far the logarithm of a probability may move; sound families measure about 1e-5."""


class Visit(NamedTuple):
    """A request: its prompt, the most tokens of its answer, and at which steps it comes and is cancelled."""

    prompt: str
    max_tokens: int
    comes: int
    cancelled: int | None = None


_STORY = "In the morning the river was quiet, and by noon the wind had turned. The boats came back one by one; "
_BEGINNING = "The small model answers every question with the same confidence. " * 8
VISITS = (
    Visit("é", 12, 0),
    Visit("def step(self):", 19, 0),
    Visit("The small model answers every question with the same", 6, 0),
    Visit(_STORY, 14, 0),
    Visit(_BEGINNING, 9, 0),  # a state of which nothing can be taken back serves those that go on from its very end
    Visit(_STORY * 7 + "and then", 15, 1),
    Visit("Some words come often: the, and, with", 24, 2, cancelled=16),
    Visit("x = 1", 22, 3),
    Visit(_BEGINNING + "Two", 13, 14),
    Visit("a queue holds the work that services hand in", 10, 15),
    Visit(_STORY * 3 + "At last", 11, 18),
    Visit(_BEGINNING + "Three of them were", 17, 24),
    Visit(_BEGINNING[:-13], 8, 26),
)


@dataclass(frozen=True)
class Comparison:
    """What came of one family."""

    way: str
    """`together`, `read apart`, `one at a time`, or `refused`."""
    reason: str = ""
    equal: int = 0
    different: int = 0
    """Different texts among those that mlx-lm made: how much the comparison says."""
    moved: float = 0.0
    """The most that the logarithm of a drawn token's probability differs."""
    spared: int = 0
    """Tokens of prompts that were found in memory."""

    @property
    def right(self) -> bool:
        return self.way == "refused" or (self.equal == len(VISITS) and self.moved <= _CLOSE)


def compare(folder: Path) -> Comparison:
    """Runs all visits on the model in `folder`, together and alone."""
    loaded: list[LoadedModel] = []

    def load_once(path: Path) -> LoadedModel:
        loaded.append(load(path))
        return loaded[0]

    limits = EngineLimits(ROWS, prefill_tokens=PIECE_TOKENS)
    try:
        engine = open_generation_engine(folder, model_name=folder.name, aliases=(), limits=limits, load=load_once)
    except BackendError as error:
        return Comparison("refused", str(error))
    reasons = [each for each in engine.info.reasons if "prompts are read" in each or "one at a time" in each]
    way = "one at a time" if engine.info.max_concurrent == 1 else "read apart" if reasons else "together"
    made = _together(engine)
    alone = [_alone(loaded[0], visit) for visit in VISITS]
    equal, moved = 0, 0.0
    for visit, got, (text, logprobs) in zip(VISITS, made, alone, strict=True):
        if isinstance(got, Rejected):
            continue
        answer = got.answers[0]
        equal += text.startswith(answer.text) if visit.cancelled else text == answer.text
        moved = max(moved, _moved(answer, logprobs))
    spared = sum(each.cached_tokens for each in made if isinstance(each, Generated))
    return Comparison(way, " ".join(reasons), equal, len({text for text, _ in alone}), moved, spared)


def _together(engine: GenerationEngine) -> list[Generated | Rejected]:
    ended: dict[int, Generated | Rejected] = {}
    step = 0
    while len(ended) < len(VISITS):
        for at, visit in enumerate(VISITS):
            if visit.comes == step:
                work = GenerationWork(at, visit.prompt, None, visit.max_tokens, temperature=0.0, logprobs=True)
                engine.admit(replace(work, stream=at % 2 == 1))  # those join in another way
            if visit.cancelled == step:
                engine.cancel(at)
        ended |= {event.id: event for event in engine.step() if isinstance(event, Generated | Rejected)}
        step += 1
    engine.close()
    return [ended[at] for at in range(len(VISITS))]


def _alone(loaded: LoadedModel, visit: Visit) -> tuple[str, list[float]]:
    """The text, and the logarithms of its tokens' probabilities."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    prompt = mx.array(loaded.tokenizer.encode(visit.prompt))
    tokens: list[int] = []
    logprobs: list[float] = []
    for token, distribution in generate_step(prompt, loaded.model, max_tokens=visit.max_tokens):
        if token in loaded.tokenizer.eos_token_ids:
            break
        tokens.append(token)
        logprobs.append(float(distribution[token].item()))
    return loaded.tokenizer.decode(tokens).rstrip("\ufffd"), logprobs


def _moved(answer: Answer, logprobs: list[float]) -> float:
    pairs = zip(answer.logprobs or (), logprobs, strict=False)
    return max((abs(likely.logprob - alone) for likely, alone in pairs), default=0.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="these alone, and nothing is written")
    parser.add_argument("--core-ai", action="store_true", help="MiniLM, whole, through Core AI's runtime, and no more")
    options = parser.parse_args(arguments)
    if options.core_ai:
        return int(write_core_ai() > 0)
    chosen = options.families
    if unknown := sorted(set(chosen) - set(FAMILIES)):
        parser.error(f"there is no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    import mlx.core as mx

    mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    print(f"{'family':22} {'way':14} equal  texts  moved    spared")
    found: dict[str, Comparison] = {}
    for name in chosen or FAMILIES:
        with tempfile.TemporaryDirectory() as made:
            found[name] = each = compare(write_family(Path(made) / name, name))
        figures = f"{each.equal:2}/{len(VISITS)}  {each.different:5}  {each.moved:7.1e}  {each.spared:4}"
        print(f"{name:22} {each.way:14} {figures}  {each.reason}{'' if each.right else '  WRONG'}", flush=True)
    if not chosen:
        write_part("Generation models", _page(found))
    wrong = [name for name, each in found.items() if not each.right]
    print(f"{len(found)} families, {len(wrong)} wrong{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


_INTRODUCTION = """\
Written by `scripts/families`: {families} families that mlx-lm knows, and for each {texts} texts made by the engine as a
worker runs it, and by mlx-lm alone, on the CPU in float32. The models are small and random, in their families' true
layouts. The texts differ in length, come and leave at different steps, are read in several pieces, begin as others did,
and go beyond what windows see. *Together* ({together}): prompts are read and answers made in one padded batch. *Read
apart* ({apart}): in such a batch the padding of shorter prompts leaks, so each prompt is read by itself, and its row
decodes with the others. *One at a time* ({alone}): no batch. Every model is tried when it is loaded, whatever its
family, and what was found is among the reasons in the worker's log. On a device that rounds otherwise for other shapes
texts may part at near-ties, which is no fault of a family; `deterministic` is for who minds."""


def _page(found: dict[str, Comparison]) -> str:
    ways = Counter(each.way for each in found.values())
    introduction = _INTRODUCTION.format(
        families=len(found),
        texts=len(VISITS),
        together=ways["together"],
        apart=ways["read apart"],
        alone=ways["one at a time"],
    )
    lines = [introduction, "", "| `model_type` | for example | requests run | equal | why |", "|---|---|---|---|---|"]
    for name, each in found.items():
        equal = f"{each.equal} of {len(VISITS)}" if each.way != "refused" else ""
        lines.append(f"| `{name}` | {FAMILIES[name].examples} | {each.way} | {equal} | {_why(each)} |")
    return "\n".join(lines)


def _why(found: Comparison) -> str:
    """The last of the reason: what was measured."""
    return re.sub(r"<class '[\w.]+\.(\w+)'>", r"\1", found.reason.split(": ", 1)[-1]).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
