"""Uploads a folder to the model hub: a folder and a name flow in, the address of the repository flows out.

The token is the one of `hf auth login` or HF_TOKEN; it is in no message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, TetrarchError


def hub_of(name: str) -> tuple[Any, str]:
    """The hub's client and the token. ConfigError without a token, or with a name that the hub does not take."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    token = get_token()
    if token is None:
        raise ConfigError("--push-to-hub needs a token of the model hub: run `hf auth login`, or set HF_TOKEN")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub={name}: {error}") from None
    return HfApi(token=token), token


def push(folder: Path, name: str, message: str, *, public: bool) -> str:
    """Upload a folder to the repository `name`, which is made if it is not there. TetrarchError if the repository is
    public, unless `public`; or if the hub refuses."""
    api, token = hub_of(name)
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True).repo_id
        if not public and not api.model_info(repository).private:
            raise TetrarchError(f"{repository} on the hub is public; say --public, or another name for --push-to-hub")
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
    except TetrarchError:
        raise
    except Exception as error:  # the hub's client raises a dozen kinds
        said = f"{type(error).__name__}: {error}".replace(token, "…")
        raise TetrarchError(f"{folder} is written, but the hub did not take it as {name}: {said}") from None
