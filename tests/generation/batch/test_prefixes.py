"""What is remembered of prompts changes how much is read, and never what is answered."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.generation.prefixes import LEAST_TOKENS, PrefixCache

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


def letters(first: int, length: int) -> str:
    """A text of so many tokens, which begins as no other does."""
    return "".join(chr(1 + (first * 7 + at * (1 + first % 5)) % 30) for at in range(length))


class Layer:
    """A layer's cache of some tokens; `read` are those it stands for."""

    def __init__(self, read: list[int], *, trimmable: bool = True, token_bytes: int = 10) -> None:
        self.read = read
        self.nbytes = len(read) * token_bytes
        self._trimmable = trimmable
        self.state: list[Any] = []

    def is_trimmable(self) -> bool:
        return self._trimmable

    def trim(self, count: int) -> None:
        assert self._trimmable
        assert 0 < count <= len(self.read)
        del self.read[-count:]


def prompt(*parts: tuple[int, int]) -> np.ndarray:
    """So many of each token: (token, times)."""
    return np.concatenate([np.full(times, token, np.int64) for token, times in parts])


def remember(cache: PrefixCache, tokens: np.ndarray, **options: Any) -> None:
    cache.add(tokens, [Layer(tokens.tolist(), **options) for _ in range(2)])


def taken(cache: PrefixCache, tokens: np.ndarray) -> int:
    """How much of this prompt it spares, checked."""
    length, layers = cache.take(tokens)
    assert cache.known(tokens) == length
    assert length < len(tokens), "the last token is always read"
    assert (layers is None) == (length == 0)
    for layer in layers or ():
        assert layer.read == tokens[:length].tolist()
        layer.read.extend([-1] * 9)  # it is ours
    return length


def test_the_longest_known_beginning_is_taken_and_never_the_last_token(loaded: LoadedModel) -> None:
    cache = PrefixCache(10**9)
    remember(cache, prompt((1, 200)))
    remember(cache, prompt((1, 300), (2, 100)))
    for _ in range(2):  # using it has changed nothing
        assert taken(cache, prompt((1, 150), (3, 50))) == 150
        assert taken(cache, prompt((1, 250), (3, 50))) == 250
        assert taken(cache, prompt((1, 300), (2, 90), (4, 5))) == 390
        assert taken(cache, prompt((1, 300), (2, 100))) == 399
        assert taken(cache, prompt((1, 300), (2, 100), (7, 1))) == 400
        assert taken(cache, prompt((1, 130))) == 129
        assert taken(cache, prompt((5, 130), (1, 200))) == 0


def test_a_short_common_beginning_is_not_worth_a_copy(loaded: LoadedModel) -> None:
    cache = PrefixCache(10**9)
    remember(cache, prompt((1, 300)))
    assert taken(cache, prompt((1, LEAST_TOKENS - 1), (2, 100))) == 0
    assert taken(cache, prompt((1, LEAST_TOKENS), (2, 100))) == LEAST_TOKENS
    assert taken(cache, prompt((1, LEAST_TOKENS))) == 0
    assert taken(cache, prompt((1, LEAST_TOKENS + 1))) == LEAST_TOKENS
    assert taken(cache, prompt((1, 1))) == 0


def test_what_cannot_go_back_serves_whole_or_not_at_all(loaded: LoadedModel) -> None:
    cache = PrefixCache(10**9)
    cache.add(prompt((1, 200)), [Layer([1] * 200), Layer([1] * 200, trimmable=False)])
    assert taken(cache, prompt((1, 199), (2, 60))) == 0
    assert taken(cache, prompt((1, 200))) == 0
    assert taken(cache, prompt((1, 201))) == 200
    assert taken(cache, prompt((1, 200), (2, 60))) == 200


def test_the_least_recently_used_goes_first_and_the_limit_is_never_exceeded(loaded: LoadedModel) -> None:
    cache = PrefixCache(3 * 200 * 20)
    for token in (1, 2, 3):
        remember(cache, prompt((token, 200)))
    assert taken(cache, prompt((1, 300))) == 200
    assert cache.known(prompt((2, 300))) == 200, "asking is no use"
    remember(cache, prompt((4, 200)))
    assert [cache.known(prompt((token, 300))) for token in (1, 2, 3, 4)] == [200, 0, 200, 200]
    remember(cache, prompt((5, 601)))
    assert cache.known(prompt((5, 700))) == 0, "larger than all that there is room for"
    assert [cache.known(prompt((token, 300))) for token in (1, 3, 4)] == [200, 200, 200]
    cache.resize(200 * 20)
    assert [cache.known(prompt((token, 300))) for token in (1, 3, 4)] == [0, 0, 200]
    cache.resize(0)
    remember(cache, prompt((6, 200)))
    assert (cache.nbytes, cache.known(prompt((6, 300)))) == (0, 0)


def test_bytes_are_counted_right_through_any_use(loaded: LoadedModel) -> None:
    dice = random.Random(3)
    cache = PrefixCache(20_000)
    for _ in range(300):
        parts = [(dice.randint(1, 3), dice.choice((64, 130, 200, 400))) for _ in range(dice.randint(1, 3))]
        if dice.random() < 0.1:
            cache.resize(dice.choice((5_000, 20_000)))
        elif taken(cache, prompt(*parts)) + LEAST_TOKENS < len(prompt(*parts)):
            remember(cache, prompt(*parts), trimmable=dice.random() < 0.7)
        assert cache.nbytes == sum(entry.nbytes for entry in cache._entries) <= cache._limit_bytes
    cache.clear()
    assert cache.nbytes == 0


# -- in a running engine ---------------------------------------------------------------------------------------------


def shared_prompts() -> list[str]:
    """Prompts that begin alike for a while, of many lengths; some are the same, and some go on where others end."""
    dice = random.Random(6)
    stems = [letters(number, 200) for number in range(3)]
    prompts = [
        stems[at % 3][: dice.choice((100, 129, 160, 200))] + letters(10 + at, dice.choice((1, 30, 150)))
        for at in range(15)
    ]
    prompts += [prompts[2], prompts[2], prompts[5] + "!", prompts[5][:-1], stems[0], stems[0], "a", "é"]
    dice.shuffle(prompts)
    return prompts


@pytest.mark.parametrize("name", ["loaded", "windowed", "recurrent"])
def test_answers_are_the_same_with_and_without_what_is_remembered(
    name: str, request: Any, make_engine: Any, work: Any, drive: Any
) -> None:
    model: LoadedModel = request.getfixturevalue(name)
    works = [work(at, text, max_tokens=4) for at, text in enumerate(shared_prompts())]
    fresh = drive(make_engine(5, loaded=model, prefix_cache_bytes=0, prefill_tokens=128), *works)
    engine = make_engine(5, loaded=model, prefill_tokens=128)
    ended: dict[int, Any] = {}
    for _ in range(2):
        ended = drive(engine, *works)
        assert {number: event.text for number, event in ended.items()} == {n: e.text for n, e in fresh.items()}
        assert all(event.cached_tokens < event.prompt_tokens for event in ended.values())
    assert {event.cached_tokens for event in fresh.values()} == {0}
    long = [event for event in ended.values() if event.prompt_tokens > 2 * LEAST_TOKENS]
    assert sum(event.cached_tokens > 0 for event in long) > len(long) / 2
    if name == "loaded":
        assert all(event.cached_tokens == event.prompt_tokens - 1 for event in long), "the second time all is known"


def test_what_was_spared_is_not_read(make_engine: Any, work: Any, drive: Any, loaded: Any, record: Any) -> None:
    model, recorded = record(loaded)
    engine = make_engine(loaded=model, prefill_tokens=64)

    def read(number: int, text: str) -> tuple[int, int]:
        recorded.since_last_time()
        event = drive(engine, work(number, text, max_tokens=1))[number]
        return event.cached_tokens, sum(call.length for call in recorded.since_last_time() if call.length > 1)

    first = letters(1, 300)
    assert read(1, first) == (0, 299)
    assert read(2, first) == (299, 0)
    assert read(3, first + "and more of it") == (299, 1 + len(loaded.tokenizer.encode("and more of it")) - 1)
    assert read(4, first[:200] + letters(2, 50)) == (200, 49)
    assert read(5, letters(2, 100)) == (0, 99)


@pytest.mark.parametrize("length", [40, 300])
def test_a_burst_of_requests_with_one_long_beginning_reads_it_once(
    make_engine: Any, work: Any, drive: Any, loaded: Any, record: Any, length: int
) -> None:
    model, recorded = record(loaded)
    engine = make_engine(loaded=model, prefill_tokens=256)
    stem = letters(4, 400)
    works = [work(at, stem + letters(20 + at, length), max_tokens=2) for at in range(6)]
    ended = drive(engine, *works)
    assert [ended[at].cached_tokens for at in range(6)] == [0] + [400] * 5
    read = sum(call.tokens for call in recorded.since_last_time() if call.length > 1)
    assert read <= 400 + 6 * length


def test_the_same_prompt_many_times_at_once_is_remembered_once(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel
) -> None:
    engine = make_engine(prefill_tokens=2048)
    drive(engine, *(work(at, letters(1, 150), max_tokens=2) for at in range(8)))
    assert engine._prefixes.nbytes == 149 * sum(2 * 2 * 16 * 4 for _ in loaded.model.layers)


def test_remembered_prompts_keep_to_their_bytes_by_what_the_device_says(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel
) -> None:
    import mlx.core as mx

    limit = 2**20
    engine = make_engine(prefix_cache_bytes=limit, prefill_tokens=1024)
    drive(engine, work(0, "Hello", max_tokens=2))
    before = mx.get_active_memory()
    for number in range(1, 15):
        drive(engine, work(number, letters(number, 140 + 40 * number), max_tokens=2))
        assert engine._prefixes.nbytes <= limit
        # MLX may reuse a freed buffer that is a few pages larger.
        assert mx.get_active_memory() - before <= limit * 1.25
    assert engine._prefixes.nbytes > limit / 2
    engine.close()
    assert mx.get_active_memory() - before < limit / 20


def test_a_batch_that_goes_on_from_an_entry_leaves_it_as_it_was(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel
) -> None:
    engine = make_engine()
    stem = letters(3, 260)
    drive(engine, work(0, stem, max_tokens=2))
    entry = engine._prefixes._entries[0]
    before = [copy.deepcopy(layer.state) for layer in entry.cache]
    drive(engine, *(work(at, stem[: 140 + 30 * at] + letters(at, 20), max_tokens=20) for at in range(1, 5)))
    assert engine._prefixes._entries.count(entry) == 1
    for layer, (keys, values, *_) in zip(entry.cache, before, strict=True):
        assert bool((layer.state[0] == keys).all())
        assert bool((layer.state[1] == values).all())
        assert layer.offset == 259
