"""Files of a Ray on this machine that its user alone can reach: the token that lets callers in, sockets and logs. By
itself Ray makes them for everybody."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from ray._common.utils import get_default_system_temp_dir

from cluster.errors import ClusterError


def keep_token_private() -> None:
    """Keep the token with which Ray lets callers in where its owner alone can read it, and make it if there is none:
    Ray would write it for everybody. Does nothing where the environment says the token, or that none is asked for."""
    said = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if said or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # of a home that cannot be written to Ray says what is wrong
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if not file.exists():
            number, own = tempfile.mkstemp(dir=file.parent)  # for its owner alone
            with os.fdopen(number, "w") as opened:
                opened.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another run was first
                os.link(own, file)
            os.unlink(own)
        file.chmod(0o600)


def sessions_folder() -> Path:
    """The folder for the sockets and logs of Ray on this machine, inside one that nobody else may enter: Ray opens its
    own to everybody, at the start of each worker anew. ClusterError if it cannot be made, or is somebody else's."""
    ours = Path(get_default_system_temp_dir()) / f"ray-{os.getuid()}"
    try:
        ours.mkdir(mode=0o700, exist_ok=True)
        if ours.is_symlink() or ours.stat().st_uid != os.getuid():
            raise ClusterError(f"{ours} belongs to somebody else; remove it, or set RAY_TMPDIR to another folder")
        ours.chmod(0o700)
    except OSError as error:
        raise ClusterError(f"Ray has no folder for its sockets: {error}; set RAY_TMPDIR to another one") from error
    return ours / "ray"
