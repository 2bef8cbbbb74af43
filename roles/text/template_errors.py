"""What to tell of a chat template that raises: a template is a program, and raises what it likes."""

from __future__ import annotations

from jinja2 import TemplateSyntaxError


class BrokenTemplate(ValueError):
    """The template itself is wrong, whatever the messages are."""


def refused_by_template(error: Exception, subject: str) -> ValueError:
    """The error to raise for `error` of a template; it begins with `subject`, such as "messages that"."""
    if isinstance(error, TemplateSyntaxError):
        why = f"in line {error.lineno}: {(error.message or '').rstrip('.')}"
        return BrokenTemplate(
            f"the tokenizer's chat template is broken {why}; correct it (chat_template.jinja, or chat_template in "
            "tokenizer_config.json)"
        )
    return ValueError(
        f"{subject} not go through the tokenizer's chat template: {error}; correct the messages, or the template"
    )
