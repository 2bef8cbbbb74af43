"""The key of an endpoint, from the environment."""

from __future__ import annotations

import os

from orchestrator.config.labelling import EndpointJudge
from orchestrator.errors import ConfigError


def endpoint_key(judge: EndpointJudge, key: str) -> str | None:
    """What `api_key_env` names; None for a server without keys. ConfigError if it holds none. `key`: the judge's key
    path."""
    if judge.api_key_env is None:
        return None
    found = os.environ.get(judge.api_key_env, "").strip()
    if not found or not found.isascii() or not found.isprintable():
        state = "is not set" if not found else "holds no key: it has characters that no header takes"
        raise ConfigError(
            f"{key}.api_key_env={judge.api_key_env}: the variable {state}; export it, or set "
            f"{key}.api_key_env=null for a server without keys"
        )
    return found
