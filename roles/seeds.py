"""Seeds for random generators that depend only on what they are used for. Pure."""

from __future__ import annotations

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A number in [0, 2**62) that depends on `parts` alone: not on the process, platform or Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def short_seed(*parts: int | str) -> int:
    """The same in [0, 2**32), which is what numpy takes."""
    return stable_seed(*parts) >> 30
