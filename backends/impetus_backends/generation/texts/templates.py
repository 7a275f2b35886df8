"""Texts of chat templates."""

from __future__ import annotations

from typing import Any


def template_for_tools(tokenizer: Any) -> str:
    """Of several, by name, that which transformers takes where there are tools; "" for a model that has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use", template.get("default"))
    return template if isinstance(template, str) else ""


def before_mark(text: str) -> str:
    """A text up to the mark in which it ends, if it ends within one."""
    return text[: text.rindex("<")] if text.rfind("<") > text.rfind(">") else text
