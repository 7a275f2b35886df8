"""A request that runs alone may get several tokens a step, and says what it says without that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.batch.lookahead import PromptLookup
from impetus_backends.protocol import Generated, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

    from ..conftest import MakeEngine

pytestmark = pytest.mark.system
PROMPTS = ["Hello", "one two three one two three one two", "Name three rivers.", "aaaa"]
MANY = 120


class Repeats:
    """A model that says the same dozen tokens over and over, but for one in 29 places, where it says another."""

    def __init__(self, model: Any, vocabulary: int, words: list[int]) -> None:
        self._model = model
        *self.cycle, self.other = words
        after = dict(zip(self.cycle, [*self.cycle[1:], self.cycle[0]], strict=True))
        self._next = [after.get(token, self.cycle[0]) for token in range(vocabulary)]

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        start = mx.array(options["cache"][0].offset).reshape(-1, 1)
        logits = self._model(tokens, **options)
        places = start + mx.arange(tokens.shape[1])
        wanted = mx.where(places % 29 == 28, self.other, mx.array(self._next)[tokens])
        return logits + 1000.0 * (mx.arange(logits.shape[-1]) == wanted[..., None])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def repeats(loaded: LoadedModel) -> LoadedModel:
    spelt = ((token, loaded.tokenizer.decode([token])) for token in range(loaded.vocabulary_size))
    words = [token for token, text in spelt if text.isascii() and text.isalpha()][:13]
    return replace(loaded, model=Repeats(loaded.model, loaded.vocabulary_size, words))


def lengths(model: Any) -> list[int]:
    """Of the steps in which one row decoded, how many tokens each was for; the prompts' pieces left out."""
    return [call.length for call in model.since_last_time() if call.length <= 9]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_alone_it_says_the_same_in_fewer_steps(
    prompt: str, repeats: LoadedModel, record: Any, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    plain = drive(make_engine(4, repeats), work(1, prompt, max_tokens=MANY))[1]
    recorded, model = record(repeats)
    said = drive(make_engine(4, recorded, lookup_tokens=8), work(1, prompt, max_tokens=MANY))[1]
    assert said.answers == plain.answers
    assert len(said.answers[0].text) >= MANY
    assert said.completion_tokens == MANY
    steps = lengths(model)
    assert max(steps) == 9
    assert len(steps) < MANY / 2


def test_what_repeats_nothing_says_the_same_too(make_engine: MakeEngine, work: Any, drive: Any, solo: Any) -> None:
    for prompt in PROMPTS:
        said = drive(make_engine(4, lookup_tokens=8), work(1, prompt, max_tokens=MANY))[1]
        assert said.answers[0].text == solo(prompt, MANY)


@pytest.mark.parametrize("changes", [{"max_tokens": most} for most in range(1, 24)] + [{"n": 2}, {"logprobs": True}])
def test_it_ends_where_it_ends_without(changes: dict[str, Any], make_engine: MakeEngine, work: Any, drive: Any) -> None:
    asked = work(1, PROMPTS[1], **changes)
    plain, looked_up = (drive(make_engine(4, lookup_tokens=tokens), asked)[1] for tokens in (0, 8))
    assert replace(looked_up, first_token_s=0, total_s=0, answers=()) == replace(
        plain, first_token_s=0, total_s=0, answers=()
    )
    for ours, theirs in zip(looked_up.answers, plain.answers, strict=True):
        assert replace(ours, logprobs=None) == replace(theirs, logprobs=None)
        for one, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_stop_string_and_a_stop_token_end_it_in_the_middle_of_a_draft(
    repeats: LoadedModel, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    said = drive(make_engine(4, repeats), work(1, PROMPTS[1], max_tokens=MANY))[1].answers[0].text
    ends: list[dict[str, Any]] = [{"stop": (said[at : at + 12],)} for at in range(len(said) // 4, len(said) - 24, 7)]
    ends += [{"stop_token_ids": (token,)} for token in (*repeats.model.cycle, repeats.model.other)]
    for changes in ends:
        asked = work(1, PROMPTS[1], max_tokens=MANY, **changes)
        plain, looked_up = (drive(make_engine(4, repeats, lookup_tokens=tokens), asked)[1] for tokens in (0, 8))
        assert looked_up.answers == plain.answers
        assert looked_up.completion_tokens == plain.completion_tokens < MANY


def test_beside_others_each_gets_one_token_a_step_and_alone_again_several(
    repeats: LoadedModel, record: Any, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    recorded, model = record(repeats)
    works = [work(at, prompt, max_tokens=15 + 40 * at) for at, prompt in enumerate(PROMPTS[:2])]
    plain = drive(make_engine(4, repeats), *works)
    ended = drive(make_engine(4, recorded, lookup_tokens=8), *works)
    assert [ended[at].answers for at in (0, 1)] == [plain[at].answers for at in (0, 1)]
    calls = model.since_last_time()
    together = [call for call in calls if call.rows == 2 and call.length == 1]
    assert len(together) >= 13
    after = calls[calls.index(together[-1]) + 1 :]
    assert any(call.length > 1 for call in after)
    assert not any(call.length > 1 for call in calls[calls.index(together[0]) : calls.index(together[-1])])


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.1}, {"deterministic": True}]
)
def test_what_is_drawn_steered_or_deterministic_goes_token_by_token(
    changes: dict[str, Any], repeats: LoadedModel, record: Any, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    recorded, model = record(repeats)
    said = drive(make_engine(4, recorded, lookup_tokens=8), work(1, PROMPTS[1], max_tokens=30, **changes))[1]
    assert isinstance(said, Generated)
    assert max(call.length for call in model.since_last_time()[1:]) == 1


@pytest.mark.parametrize("name", ["windowed", "recurrent"])
def test_caches_that_cannot_go_back_are_left_alone(
    name: str, request: pytest.FixtureRequest, record: Any, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    recorded, model = record(request.getfixturevalue(name))
    plain = drive(make_engine(4, recorded), work(1, PROMPTS[1], max_tokens=30))[1]
    looked_up = drive(make_engine(4, recorded, lookup_tokens=8), work(1, PROMPTS[1], max_tokens=30))[1]
    assert looked_up.answers == plain.answers
    assert lengths(model).count(1) >= 58


class Breaks:
    """A model whose distributions after the second token of a longer step are no numbers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.broke = False

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        logits = self._model(tokens, **options)
        if 2 < tokens.shape[1] < 9:
            self.broke = True
            logits = mx.where(mx.arange(tokens.shape[1])[None, :, None] >= 1, mx.nan, logits)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_what_is_no_number_in_the_middle_of_a_draft_ends_the_request(
    repeats: LoadedModel, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    model = Breaks(repeats.model)
    prompt = "one two three " * 8  # longer than a draft, so that its reading does not break
    said = drive(make_engine(4, replace(repeats, model=model), lookup_tokens=8), work(1, prompt, max_tokens=MANY))[1]
    assert model.broke
    assert isinstance(said, Rejected)
    assert "not numbers" in said.message


def test_a_request_cancelled_and_one_that_follows_it_are_as_without(
    repeats: LoadedModel, make_engine: MakeEngine, work: Any, drive: Any
) -> None:
    followed = work(2, PROMPTS[0], max_tokens=MANY)
    engine = make_engine(4, repeats, lookup_tokens=8)
    engine.admit(work(1, PROMPTS[1], max_tokens=1000))
    for _ in range(30):
        engine.step()
    engine.cancel(1)
    assert drive(engine, followed)[2].answers == drive(make_engine(4, repeats), followed)[2].answers


def test_drafts_are_what_came_after_the_same_three_tokens_last_and_grow_while_they_are_right() -> None:
    lookup = PromptLookup(8)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    assert lookup.draft(tokens, 3, room=100) == [4, 5]
    lookup.learn(2, 2)
    tokens += [3, 4, 5]
    assert lookup.draft(tokens, 6, room=100) == [7, 8, 9, 1]
    assert lookup.draft(tokens, 6, room=2) == [7, 8]
    assert lookup.draft(tokens, 6, room=0) == []


def pause_of(lookup: PromptLookup) -> int:
    steps = 0
    while lookup.pauses():
        steps += 1
    return steps


def test_after_drafts_that_were_wrong_it_pauses_ever_longer_and_one_that_was_right_ends_that() -> None:
    lookup = PromptLookup(8)
    pauses = []
    for right in (0, 0, 0, 0, 0, 0, 1, 0):
        lookup.learn(2, right)
        pauses.append(pause_of(lookup))
    assert pauses == [1, 2, 4, 8, 16, 16, 0, 1]


def test_where_nothing_is_found_it_looks_again_soon() -> None:
    lookup = PromptLookup(8)
    for _ in range(3):
        assert lookup.draft([1, 2, 3], 4, room=8) == []
        assert pause_of(lookup) == 2
