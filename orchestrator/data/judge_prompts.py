"""What a judge is asked, and what its answers mean. Pure.

A comparison of two responses shows both and asks for A or B (Lee et al., RLAIF, arXiv 2309.00267); a critique and a
revision follow a principle (Bai et al., Constitutional AI, arXiv 2212.08073).

    JudgeQuestion([user "… <response A> red … Answer with A or B."], letters=True, max_tokens=16)
    JudgeAnswer("B", letters=(0.02, 0.9), prompt_tokens=120, completion_tokens=1)     A is better with 0.02 / 0.92
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from orchestrator.config.labelling import Principle
from roles.text.messages import Messages, Tools, said_in
from roles.text.prompt_tokens import chat_text, prompt_tokens
from roles.text.sample_tokens import Text

LETTERS = ("A", "B")
"""Answers to a comparison: the response that is shown first, or the other."""

AROUND_TOKENS = 16
"""Tokens that a server may put around each message."""

AROUND_TOOLS = 1024
"""Tokens with which a chat template may say what its tools are for."""

_DECORATION = r"[\s\"'(\[*#]*"
_LETTER = re.compile(
    rf"{_DECORATION}(?:(?:(?:the better )?(?:response|answer|choice)(?: is)?)\s*:?{_DECORATION})?"
    r"(?-i:([AB]))(?=\s*$|\s*[)\].:,;*\"'\n]|\s+is\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """One request to a judge."""

    messages: Messages
    letters: bool = False
    """Whether the answer is A or B, whose probabilities are wanted."""
    max_tokens: int = 1
    """Most tokens of the answer."""
    temperature: float = 0.0
    """0: the most likely tokens."""
    seed: int = 0
    plain: bool = False
    """Whether the one message is a text that the model goes on from, and not a chat."""
    tools: Tools = ()
    """Of the chat."""

    def key(self, judge: str) -> str:
        """A hash of everything that the answer depends on; `judge`: who is asked."""
        asked = [judge, self.messages, self.letters, self.max_tokens, self.temperature, self.seed]
        asked += ["plain"] if self.plain else []
        asked += [self.tools] if self.tools else []
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def most_prompt_tokens(self) -> int:
        """No tokenizer makes more: a token is a byte of the text at least."""
        texts = [said_in(message).encode("utf-8", "surrogatepass") for message in self.messages]
        known = AROUND_TOOLS + len(json.dumps(self.tools, indent=4)) if self.tools else 0
        return known + sum(len(text) + AROUND_TOKENS for text in texts)


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """What a judge said."""

    text: str
    letters: tuple[float, float] | None = None
    """Probabilities of A and B, which may add up to less than 1; None if the judge gave none."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False
    """Whether the answer has reached its most tokens."""


def comparison(instruction: str, prompt: Text, shown: tuple[Text, Text], max_tokens: int) -> JudgeQuestion:
    """Which of two responses is better, in the order in which they are `shown`."""
    first, second = map(transcript, shown)
    text = (
        f"{instruction}\n\n<prompt>\n{transcript(prompt)}\n</prompt>\n\n"
        f"<response A>\n{first}\n</response A>\n\n<response B>\n{second}\n</response B>\n\n"
        "Which response is better? Answer with A or B, and nothing else."
    )
    return JudgeQuestion([{"role": "user", "content": text}], letters=True, max_tokens=max_tokens)


def critique(principle: Principle, prompt: Text, response: str) -> str:
    """Asks for what is wrong with a response."""
    said = f"<prompt>\n{transcript(prompt)}\n</prompt>\n\n<response>\n{response}\n</response>"
    return f"Below are a prompt and a response to it.\n\n{said}\n\nCritique request: {principle.critique}"


def revision(principle: Principle, asked: str, found: str) -> str:
    """Asks for a better response, after the critique `found`, for which it was `asked`."""
    wanted = f"Revision request: {principle.revision}\n\nWrite the revised response, and nothing else."
    return f"{asked}\n\nCritique: {found}\n\n{wanted}"


def transcript(text: Text) -> str:
    """A text as it is; a response of one message is what it says; a longer chat says who speaks."""
    if isinstance(text, str):
        return text.strip()
    if len(text) == 1:
        return said_in(text[0]).strip()
    return "\n\n".join(f"{message['role'].capitalize()}: {said_in(message).strip()}" for message in text)


def completion_text(question: JudgeQuestion) -> str:
    """The question for a model without a chat template, up to where its answer begins."""
    return f"{transcript(question.messages)}\n\nAnswer:"


def question_tokens(tokenizer: PreTrainedTokenizerBase, question: JudgeQuestion) -> list[int]:
    """A question as a model reads it: a text as it is, a chat through its template, or as text if it has none."""
    if question.plain:
        return prompt_tokens(tokenizer, [question.messages[0]["content"]], chat=False)[0]
    if tokenizer.chat_template is None:
        return prompt_tokens(tokenizer, [completion_text(question)], chat=False)[0]
    return prompt_tokens(tokenizer, [chat_text(tokenizer, question.messages, question.tools)], chat=True)[0]


def first_is_better(answer: JudgeAnswer, minimum_mass: float) -> float | None:
    """Probability that the response that was shown first is the better one; None: the judge abstains.

    Without probabilities it is 1 or 0, as the answer's letter says. With them the judge abstains if A and B together
    are less probable than `minimum_mass`.
    """
    if answer.letters is None:
        letter = letter_of(answer.text)
        return None if letter is None else float(letter == LETTERS[0])
    first, second = answer.letters
    mass = first + second
    return first / mass if mass > 0 and mass >= minimum_mass else None


def letter_of(text: str) -> str | None:
    """A or B if the text answers with it, as in `B`, `(A)`, `**B**.` or `Answer: A`; None for prose, in which `A` may
    be an article."""
    found = _LETTER.match(text)
    return found[1] if found else None


def letter_tokens(tokenizer: PreTrainedTokenizerBase, letter: str) -> list[int]:
    """The single tokens that write a letter, with and without a space before it; empty if there are none."""
    words = tokenizer.get_vocab().items()
    return sorted(number for word, number in words if isinstance(word, str) and word.lstrip(" ▁Ġ") == letter)


def bare(token: str) -> str:
    """A token without what may stand around a letter."""
    return token.strip(" \t\n\r\"'()[]*#.:▁Ġ")
