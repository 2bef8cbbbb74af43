"""What is hidden, and what stays readable."""

from __future__ import annotations

import pytest

from roles.redaction import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/x", "https://***@host/x"),
        ("ask http://host:8000/score?api_key=SECRET&v=2 again", "ask http://host:8000/score?api_key=***&v=*** again"),
        ('{"url": "https://u@h/a?t=S"}', '{"url": "https://***@h/a?t=***"}'),
        ("http://host/score", "http://host/score"),
        ("why? a=b", "why? a=b"),
    ],
)
def test_secrets_in_urls(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
