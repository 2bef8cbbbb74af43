"""Whose tokens the responses are that a reward reads as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roles.text.messages import MESSAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PolicyText:
    """The policy whose tokenizer made the token ids. Example: `PolicyText("runs/tiny/actor", tools="tools")`."""

    path: str
    """The policy's folder."""
    trust_remote_code: bool = False
    """Whether code in that folder may run."""
    tools: str | None = None
    """The column with the tools of each chat; None: there are none."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the text bridge reads of the data set."""
        return (MESSAGES, *([] if self.tools is None else [self.tools]))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        from roles.text.tokenizer import load_tokenizer  # loads transformers, which most rewards do without

        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)
