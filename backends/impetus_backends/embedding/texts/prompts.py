"""Families whose models were trained with prompts before every text, and whose files may not say so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# arXiv:2212.03533 and arXiv:2402.05672; those that follow instructions (…-instruct, e5-mistral) are another matter.
_E5 = re.compile(r"(^|[/_-])e5-(small|base|large)(?!.*instruct)", re.IGNORECASE)
_E5_PROMPTS = '"query: " and "passage: "'


def missing_prompts(names: Iterable[str], prompts: Iterable[str]) -> str | None:
    """A sentence, if a model of these names needs prompts of which its files state none."""
    if any(prompts) or not any(_E5.search(name) for name in names):
        return None
    return (
        f"E5 models were trained with {_E5_PROMPTS} before every text, and this one's files state no prompts, so none "
        "is put there: state them in its config_sentence_transformers.json, or put them before the texts"
    )
