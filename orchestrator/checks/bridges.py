"""Whether a reward model behind the text bridge can read the chats of a run through its own chat template.

The prompts that were read flow in; nothing flows out, or a ConfigError that names row and fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from roles.text.messages import Tools, plain_tools

if TYPE_CHECKING:
    from orchestrator.data.prompts import Questions
    from orchestrator.data.row_files import Where


def check_bridges(config: EvaluationRun, read: Iterable[Questions]) -> None:
    """One row of each order of roles in `read` is written, with an answer."""
    read = list(read)
    for role, scorer in config.reward_models.items():
        if not scorer.text_bridge:
            continue
        key = f"{section_key(role)}.model"
        for questions in read:
            chats = questions.columns.get("messages")
            if chats:
                said = questions.columns.get(config.prompts.tools or "", [None] * len(chats))
                asked = [(chat, plain_tools(tools)) for chat, tools in zip(chats, said, strict=True)]
                _check_template(config, role, f"{key}.path={scorer.model.path}", questions.where, asked)


def _check_template(
    config: EvaluationRun, role: str, where: str, prompts: Where, chats: list[tuple[Any, Tools]]
) -> None:
    from roles.model_files.conversion import resolve_model
    from roles.text.answered_chat import answered_chat
    from roles.text.prompt_tokens import TEMPLATE_S, writes_tools
    from roles.text.time_limit import time_limit
    from roles.text.tokenizer import load_tokenizer

    model = config.reward_models[role].model
    folder = resolve_model(model.model_copy(update={"layers": None}), Path(config.model_cache))
    tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{where} has no chat template to read the chats of {prompts} with (text_bridge: true); add "
            "chat_template.jinja to its folder, or give the prompts as text"
        )
    if not writes_tools(tokenizer) and any(tools for _, tools in chats):
        raise ConfigError(
            f"{where}: its chat template does not write the tools of {prompts} (prompts.tools={config.prompts.tools}), "
            "of which the responses make use; add a chat_template.jinja that does to its folder, or use another reward "
            "model"
        )
    asked = reversed(list(enumerate(chats)))
    orders = {(bool(tools), *(message.get("role") for message in chat)): row for row, (chat, tools) in asked}
    for row in sorted(orders.values()):
        chat, tools = chats[row]
        try:
            with time_limit(TEMPLATE_S):
                for finished in (True, False):
                    answered_chat(tokenizer, chat, "an answer", finished=finished, tools=tools)
        except Exception as error:  # a template is a program: it raises what it likes
            raise ConfigError(
                f"{where}: its chat template cannot write the chat of {prompts.row(row)} ({error}); correct the chat, "
                "or use another reward model"
            ) from error
