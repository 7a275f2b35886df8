"""The simulated engines keep to their stated times, repeat themselves exactly, and say what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.engine_config import EngineConfig
from impetus_backends.protocol import Embedded, EmbeddingWork, Generated, GenerationWork, Progress, Rejected, Started
from impetus_backends.simulated import (
    NOTE,
    SimulatedGenerationEngine,
    SimulatedTextEncoder,
    open_simulated_embedding,
    open_simulated_generation,
)

if TYPE_CHECKING:
    from impetus_backends.protocol import Event

EMBEDDING = EngineConfig("embedding", "any/model", "simulated", simulated_a_s=0.5, simulated_b_s=0.25)


def generation(sleeps: list[float], max_concurrent: int = 2) -> SimulatedGenerationEngine:
    config = EngineConfig("generation", "any/model", "simulated", max_concurrent=max_concurrent, simulated_a_s=0.5)
    return open_simulated_generation(config, sleep=sleeps.append, clock=lambda: sum(sleeps))


def ask(number: int, prompt: str = "hello there", max_tokens: int = 100, **options: object) -> GenerationWork:
    return GenerationWork(number, prompt, None, max_tokens, **options)  # type: ignore[arg-type]


def drain(engine: SimulatedGenerationEngine) -> list[Event]:
    events: list[Event] = []
    while engine.pending():
        events += [event for event in engine.step() if not isinstance(event, Started)]
    return events


def test_a_batch_takes_the_time_of_its_padded_tokens() -> None:
    sleeps: list[float] = []
    engine = open_simulated_embedding(EMBEDDING, sleep=sleeps.append)
    rows = [text.ids for text in SimulatedTextEncoder().encode(["one", "one two three"])]
    engine.admit(EmbeddingWork(1, rows))
    engine.step()
    assert sleeps == [0.5 + 0.25 * 2 * 5]


def test_vectors_depend_on_the_text_alone_and_have_length_one() -> None:
    def embed(*texts: str) -> np.ndarray:
        engine = open_simulated_embedding(EMBEDDING, sleep=lambda _: None)
        engine.admit(EmbeddingWork(1, [text.ids for text in SimulatedTextEncoder().encode(texts)]))
        (event,) = engine.step()
        assert isinstance(event, Embedded)
        return event.vectors

    both = embed("one", "two words")
    assert both.shape == (2, 384)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both[1], embed("two words")[0])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    assert abs(both[0] @ both[1]) < 0.5


def test_everything_says_that_it_is_simulated() -> None:
    for info in (open_simulated_embedding(EMBEDDING).info, generation([]).info):
        assert info.backend == info.device == "simulated"
        assert info.note == NOTE
        assert info.model_aliases == ("any/model", "model", "simulated")
    (event,) = drain_one("hello")
    assert event.text.startswith("[simulated] ")


def drain_one(prompt: str, **options: object) -> tuple[Generated]:
    engine = generation([])
    engine.admit(ask(1, prompt, **options))  # type: ignore[arg-type]
    (event,) = drain(engine)
    assert isinstance(event, Generated)
    return (event,)


def test_the_simulated_tokenizer_cuts_at_its_maximum_and_says_so() -> None:
    encoder = SimulatedTextEncoder(max_tokens=4)
    empty, fits, beyond = encoder.encode(["", "a b", "a b c"])
    assert empty.ids.tolist() == [1, 2]
    assert (len(fits.ids), fits.truncated) == (4, False)
    assert beyond.ids.tolist() == fits.ids.tolist()
    assert beyond.truncated


def test_the_same_prompt_makes_the_same_text_and_another_seed_another() -> None:
    assert drain_one("hello") == drain_one("hello")
    assert drain_one("hello")[0].text != drain_one("hullo")[0].text
    assert drain_one("hello", seed=1)[0].text != drain_one("hello", seed=2)[0].text


def test_generation_honours_max_tokens_and_stop() -> None:
    (short,) = drain_one("hello", max_tokens=3)
    assert (short.completion_tokens, short.finish_reason, len(short.text.split())) == (3, "length", 3)
    (whole,) = drain_one("hello")
    assert whole.finish_reason == "stop"
    third = whole.text.split()[2]
    (stopped,) = drain_one("hello", stop=(f" {third}",))
    assert stopped.finish_reason == "stop"
    assert third not in stopped.text
    assert whole.text.startswith(stopped.text)


def test_requests_decode_together_up_to_the_limit() -> None:
    sleeps: list[float] = []
    engine = generation(sleeps)
    for number in range(3):
        engine.admit(ask(number, max_tokens=2))
    assert engine.pending() == 3
    events = drain(engine)
    assert [event.id for event in events] == [0, 1, 2]
    assert sleeps == [0.5] * 4
    first = events[0]
    assert isinstance(first, Generated)
    assert (first.first_token_s, first.total_s, first.prompt_tokens) == (0.5, 1.0, 2)


def test_cancelled_generations_come_back_with_what_they_had_made() -> None:
    engine = generation([], max_concurrent=1)
    for number in range(3):
        engine.admit(ask(number, max_tokens=5))
    engine.step()
    engine.cancel(0)
    engine.cancel(2)
    events = [event for event in drain(engine) if isinstance(event, Generated)]
    assert [(event.id, event.finish_reason, event.completion_tokens) for event in events] == [
        (0, "cancelled", 1),
        (2, "cancelled", 0),
        (1, "length", 5),
    ]


def test_a_streamed_generation_is_told_word_by_word() -> None:
    engine = generation([])
    engine.admit(ask(1, max_tokens=4, stream=True))
    events = drain(engine)
    pieces = [event.text for event in events if isinstance(event, Progress)]
    assert len(pieces) == 3
    assert isinstance(events[-1], Generated)
    assert events[-1].text.startswith("".join(pieces))


@pytest.mark.parametrize("urgent", [False, True])
def test_embeddings_are_rejected_by_the_generation_engine(urgent: bool) -> None:
    engine = generation([])
    engine.admit(EmbeddingWork(4, [], urgent=urgent))
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    assert event.permanent
