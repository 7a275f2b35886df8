from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.protocol import EmbeddingWork, Generated, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.protocol import EngineInfo

pytestmark = pytest.mark.system

TEXT = "a queue holds the work that services hand in 日本語 and Zürich 🙂 def step(self): return one x = 1"
WORDS = TEXT.split()
PROMPTS = [
    " ".join(WORDS[(start * 7 + start // 10 + at) % len(WORDS)] for at in range(length))
    for start, length in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89] * 3)
]


def endings(events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, Generated | Rejected)]


@pytest.fixture(scope="module")
def prompt_that_ends(loaded: LoadedModel) -> str:
    """A prompt whose greedy answer the tiny model ends with an end-of-text token."""
    import mlx_lm

    for prompt in PROMPTS:
        *_, last = mlx_lm.stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=200)
        if last.finish_reason == "stop":
            return prompt
    raise AssertionError("the tiny model ends none of these prompts by itself")


def test_the_engine_says_what_it_is(info: EngineInfo, loaded: LoadedModel) -> None:
    assert (info.kind, info.backend, info.model) == ("generation", "mlx", "tiny")
    assert info.model_aliases == ("tiny", "org/tiny")
    assert info.device.split()[0] in {"cpu", "gpu"}
    assert (info.precision, info.max_tokens) == ("float32", 1024)
    assert info.fingerprint == loaded.fingerprint
    assert info.note is not None
    assert "random weights" in info.note
    assert info.reasons == ()


def test_no_batch_makes_a_stream_of_its_own_for_which_all_functions_are_compiled_anew(
    make_engine: Any, work: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    def made(*arguments: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(mx, "new_stream", made)
    for _ in range(2):
        assert drive(make_engine(), work(1, PROMPTS[0]))[1].text


def test_thirty_prompts_batched_with_strangers_read_as_they_do_alone(
    make_engine: Any, work: Any, drive: Any, solo: Any
) -> None:
    works = [work(number, prompt, max_tokens=16 + 5 * (number % 7)) for number, prompt in enumerate(PROMPTS)]
    ended = drive(make_engine(max_concurrent=12), *works)
    expected = {item.id: solo(item.prompt, item.max_tokens) for item in works}
    assert {number: event.text for number, event in ended.items()} == expected
    assert len(set(expected.values())) == 30
    assert {event.finish_reason for event in ended.values()} == {"stop", "length"}


def test_requests_join_and_leave_while_others_decode(make_engine: Any, work: Any, solo: Any) -> None:
    engine = make_engine(max_concurrent=4)
    works = [work(number, PROMPTS[number], max_tokens=10 + 9 * (number % 4)) for number in range(10)]
    texts: dict[int, str] = {}
    alongside: set[int] = set()
    arriving = iter(works)
    for step in count():
        if step % 3 == 0 and (item := next(arriving, None)) is not None:
            engine.admit(item)
        if not engine.pending():
            break
        for event in endings(engine.step()):
            texts[event.id] = event.text
            alongside.add(engine.pending())
    assert texts == {item.id: solo(item.prompt, item.max_tokens) for item in works}
    assert max(alongside) > 1, "nobody left while others were decoding"


def test_no_more_than_max_concurrent_decode_together(make_engine: Any, work: Any) -> None:
    engine = make_engine(max_concurrent=2)
    for number in range(6):
        engine.admit(work(number, "Zürich", max_tokens=4))
    waves = []
    while engine.pending():
        if ended := endings(engine.step()):
            waves.append([event.id for event in ended])
    assert waves == [[0, 1], [2, 3], [4, 5]]


def test_max_tokens_ends_a_text_with_reason_length(make_engine: Any, work: Any, drive: Any) -> None:
    ended = drive(make_engine(), *(work(length, "Hello world", max_tokens=length) for length in range(1, 25)))
    for length, event in ended.items():
        assert event.finish_reason == "length"
        assert event.completion_tokens == length
        assert not event.text.endswith("\ufffd")
        assert ended[24].text.startswith(event.text)


def test_the_end_of_text_token_is_counted_and_not_written(
    make_engine: Any, work: Any, drive: Any, prompt_that_ends: str
) -> None:
    event = drive(make_engine(), work(1, prompt_that_ends, max_tokens=600))[1]
    assert event.finish_reason == "stop"
    assert event.completion_tokens < 600
    assert "<|im_end|>" not in event.text
    assert "<|endoftext|>" not in event.text
    again = drive(make_engine(), work(1, prompt_that_ends, max_tokens=event.completion_tokens - 1))[1]
    assert (again.text, again.finish_reason) == (event.text, "length")


def test_an_end_of_text_token_still_ends_a_request_that_has_stop_strings(
    make_engine: Any, work: Any, drive: Any, prompt_that_ends: str
) -> None:
    prompt = prompt_that_ends
    ended = drive(
        make_engine(), work(1, prompt, max_tokens=600), work(2, prompt, max_tokens=600, stop=("never there",))
    )
    assert ended[1].finish_reason == ended[2].finish_reason == "stop"
    assert (ended[1].text, ended[1].completion_tokens) == (ended[2].text, ended[2].completion_tokens)


def test_stop_strings_are_never_written_even_across_tokens(make_engine: Any, work: Any, drive: Any, solo: Any) -> None:
    full = solo(PROMPTS[9], 64)
    stops = [full[at : at + length] for at in range(4, 40, 5) for length in (1, 3, 9)]
    assert all(full.find(stop) >= 0 for stop in stops)
    works = [work(number, PROMPTS[9], max_tokens=64, stop=(stop, "†")) for number, stop in enumerate(stops)]
    for number, event in drive(make_engine(), *works).items():
        assert event.text == full[: full.find(stops[number])].rstrip("\ufffd")
        assert event.finish_reason == "stop"
        assert event.completion_tokens < 64


def test_a_stop_string_frees_the_place_for_the_next_request(make_engine: Any, work: Any, drive: Any, solo: Any) -> None:
    stop = solo("Hello world", 32)[3:6]
    engine = make_engine(max_concurrent=1)
    ended = drive(engine, work(1, "Hello world", stop=(stop,)), work(2, "When the wind"))
    assert ended[2].text == solo("When the wind", 32)


def test_messages_go_through_the_chat_template(make_engine: Any, work: Any, drive: Any) -> None:
    turns = (("system", "Be brief."), ("user", "Who are you?"))
    written = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    ended = drive(make_engine(), work(1, None, messages=turns), work(2, written))
    assert ended[1].text == ended[2].text
    assert ended[1].prompt_tokens == ended[2].prompt_tokens


def test_a_cancelled_request_frees_its_row_and_comes_back_with_what_it_had_made(
    make_engine: Any, work: Any, drive: Any, solo: Any
) -> None:
    engine = make_engine(max_concurrent=2)
    for number in range(4):
        engine.admit(work(number, PROMPTS[number], max_tokens=900))
    for _ in range(5):
        assert endings(engine.step()) == []
    for number in (0, 1, 3, 99):  # two that decode, one that waits, one that nobody knows
        engine.cancel(number)
    first, second, waited = endings(engine.step())
    assert [each.finish_reason for each in (first, second, waited)] == ["cancelled"] * 3
    # A token a step, and one more where another joined.
    assert (first.completion_tokens, waited.completion_tokens) == (6, 0)
    assert solo(PROMPTS[0], 6) == first.text
    assert waited.text == ""
    engine.cancel(2)
    assert [event.id for event in endings(engine.step())] == [2]
    assert engine.pending() == 0
    assert drive(engine, work(5, PROMPTS[5]))[5].text == solo(PROMPTS[5], 32)


def test_cancelling_one_of_a_batch_leaves_the_others_text_alone(make_engine: Any, work: Any, solo: Any) -> None:
    engine = make_engine()
    for number in range(5):
        engine.admit(work(number, PROMPTS[number]))
    for _ in range(8):
        engine.step()
    engine.cancel(2)
    ended: dict[int, Any] = {}
    while engine.pending():
        ended |= {event.id: event for event in endings(engine.step())}
    assert ended[2].completion_tokens >= 7
    texts = {number: event.text for number, event in ended.items()}
    assert texts.pop(2) == solo(PROMPTS[2], ended[2].completion_tokens)
    assert texts == {number: solo(PROMPTS[number], 32) for number in (0, 1, 3, 4)}


def test_times_are_counted_from_admission(make_engine: Any, work: Any, drive: Any) -> None:
    ticks = count()
    event = drive(make_engine(clock=lambda: float(next(ticks))), work(1, max_tokens=5))[1]
    assert isinstance(event, Generated)
    assert 0 < event.first_token_s < event.total_s
    assert event.total_s - event.first_token_s == 5, "one tick a step, and one at the end"


def test_embedding_work_is_rejected(make_engine: Any) -> None:
    engine = make_engine()
    engine.admit(EmbeddingWork(id=3, rows=[np.zeros(1, np.int32)]))
    assert engine.pending() == 1
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    assert "embeddings" in event.message
