"""The bodies of requests, as the routes read them. A field that is not known, or of another type, is an error: none is
ignored or converted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "stop": (None, []),
    "echo": (False,),
    "suffix": (None,),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
}
"""OpenAI's parameters that are not supported → values with which they mean nothing."""
IGNORED = ("user", "metadata", "store", "safety_identifier")
"""OpenAI's parameters that change no answer."""

Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateBody(Body):
    """`POST /generate`."""

    prompt: str | list[dict[str, Any]]
    """Text, or the messages of a chat."""
    max_new_tokens: Count | None = None
    num_return_sequences: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    columns: dict[str, Any] = Field(default_factory=dict)
    """Columns that a reward function reads, such as `{"answer": "5"}`."""


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class OpenAIBody(Body):
    """What both routes of OpenAI read."""

    model: str | None = None
    n: Count = 1
    best_of: Count | None = None
    """Responses to generate; the `n` with the highest scores are returned."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_means_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if k not in IGNORED and not (k in UNSUPPORTED and v in UNSUPPORTED[k])}


class CompletionBody(OpenAIBody):
    """`POST /v1/completions`."""

    prompt: str | list[int]
    """Text, or token ids."""
    max_tokens: Count | None = None


class ChatBody(OpenAIBody):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
