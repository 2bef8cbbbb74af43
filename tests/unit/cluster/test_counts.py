from __future__ import annotations

from cluster.counts import counted, spanned


def test_what_is_counted_has_its_number() -> None:
    assert [counted(count, "token") for count in (0, 1, 2, 1234)] == ["0 tokens", "1 token", "2 tokens", "1,234 tokens"]
    cards = [counted(count, "GPU") for count in (0.5, 0.1 + 0.2, 1.0, 64.0, 2048.0)]
    assert cards == ["0.5 GPUs", "0.3 GPUs", "1 GPU", "64 GPUs", "2,048 GPUs"], "Ray's numbers are fractions"
    spans = [spanned(*span, "token") for span in ((1, 1), (2, 2), (1, 2), (5, 1200))]
    assert spans == ["1 token", "2 tokens", "1 to 2 tokens", "5 to 1,200 tokens"]
