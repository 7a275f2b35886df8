"""What one request costs or tells the others: long prompts, hostile schemas, and rounding."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.protocol import Generated, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system
PROMPT = "A queue holds"


def test_a_long_prompt_is_read_while_the_others_go_on(
    make_engine: Any, work: Any, solo: Any, loaded: LoadedModel
) -> None:
    from impetus_backends.generation.texts import long_prompts

    wide = dataclasses.replace(loaded, context_tokens=300_000)
    engine = make_engine(loaded=wide)
    engine.admit(work(1, PROMPT, stream=True))
    engine.step()
    for at in range(2, 6):
        engine.admit(work(at, "a" * 1_500_000, max_tokens=4))
    assert long_prompts.LONG_CHARACTERS < 1_500_000
    ended: dict[int, Any] = {}
    while engine.pending():
        for event in engine.step():
            if isinstance(event, Generated | Rejected):
                ended[event.id] = event
    assert list(ended) == [1, 2, 3, 4, 5], "who decodes does not wait for who is read"
    assert ended[1].text == solo(PROMPT)
    assert all("this model's maximum context length is 300000 tokens" in ended[at].message for at in range(2, 6))


def test_a_long_prompt_makes_what_it_would_have_made_and_may_be_cancelled(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from impetus_backends.generation.texts import long_prompts

    short = drive(make_engine(), work(1, PROMPT), work(2, None, messages=(("user", "Who?"),)))
    monkeypatch.setattr(long_prompts, "LONG_CHARACTERS", 1)
    engine = make_engine()
    long = drive(engine, work(1, PROMPT), work(2, None, messages=(("user", "Who?"),)), work(3, None, messages=()))
    assert [long[at].text for at in (1, 2)] == [short[at].text for at in (1, 2)]
    assert isinstance(long[3], Rejected)
    engine.admit(work(4, PROMPT))
    engine.cancel(4)
    (ended,) = engine.step()
    assert (ended.id, ended.finish_reason, engine.pending()) == (4, "cancelled", 0)


@pytest.mark.parametrize("levels", [3, 20])
def test_a_schema_that_grows_by_powers_is_refused_at_once(make_engine: Any, work: Any, drive: Any, levels: int) -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {
            "propertyNames": {"$ref": "#/$defs/e"},
            "additionalProperties": nested(depth - 1) if depth else {"type": "string"},
        }

    schema = json.dumps({"$defs": {"e": {"enum": [str(each) for each in range(50)]}}, **nested(levels)})
    ended = drive(make_engine(), work(1, PROMPT, schema=schema))[1]
    assert "the JSON schema is too intricate" in ended.message


@pytest.mark.parametrize("named", [True, False])
def test_branches_that_are_told_apart_in_each_other_are_kept_to_or_refused_at_once(
    make_engine: Any, work: Any, drive: Any, named: bool
) -> None:
    def kind(name: str, inner: str | None) -> dict[str, Any]:
        either = {"oneOf": [{"$ref": f"#/$defs/{inner}a"}, {"$ref": f"#/$defs/{inner}b"}],
                  "discriminator": {"propertyName": "kind"}} if inner else {"type": "string"}  # fmt: skip
        required = ["kind", "x"] if named else ["x"]
        return {"type": "object", "properties": {"kind": {"const": name}, "x": either}, "required": required}

    definitions = {f"{at}{side}": kind(f"{at}{side}", str(at - 1) if at else None) for at in range(25) for side in "ab"}
    schema = json.dumps({"$defs": definitions, "$ref": "#/$defs/24a"})
    ended = drive(make_engine(), work(1, PROMPT, schema=schema))[1]
    if named:
        assert "".join(ended.text.split()).startswith('{"kind":"24a"')
    else:  # each branch says once more that it names itself, and so do those in it
        assert "the JSON schema is too intricate" in ended.message


class Rounding:
    """A model whose logits depend on how many rows it computes, as a GPU's do; and who has been told of what."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rows: list[int] = []

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        self.rows.append(tokens.shape[0])
        logits = self._model(tokens, **options)
        return logits + 3.0 * mx.sin(mx.arange(logits.shape[-1]) * (tokens.shape[0] - 1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_who_is_to_be_deterministic_is_told_the_same_beside_whomever(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, solo: Any
) -> None:
    model = Rounding(loaded.model)
    engine = make_engine(4, loaded=dataclasses.replace(loaded, model=model))
    beside = [work(at, f"Neighbour {at}", max_tokens=40) for at in range(10, 16)]
    asked = [work(at, PROMPT, deterministic=True) for at in (1, 2, 3)]
    ended = drive(engine, *beside[:2], work(4, PROMPT), *asked, *beside[2:])
    assert {ended[at].text for at in (1, 2, 3)} == {solo(PROMPT)}
    assert ended[4].text != solo(PROMPT), "beside others this device rounds otherwise"
    assert max(model.rows) > 1
    assert engine.pending() == 0


def test_a_deterministic_request_is_deferred_cancelled_and_failed_as_others_are(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, solo: Any
) -> None:
    engine = make_engine(3)
    for at in (1, 2, 3):
        engine.admit(work(at, PROMPT, deterministic=True, n=2, temperature=1.0, seed=5))
    engine.step()
    for at in (1, 2):
        engine.cancel(at)
    ended = drive(engine, work(4, "Another"), work(5, PROMPT, deterministic=True, logit_bias={99_999: 1.0}))
    assert ended[1].answers[-1].finish_reason == ended[2].answers[-1].finish_reason == "cancelled"
    assert len(ended[3].answers) == 2
    assert ended[4].text == solo("Another")
    assert isinstance(ended[5], Rejected)
