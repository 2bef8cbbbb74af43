"""Ray's token, sockets and logs on one machine are where nobody else can read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.runtime.private_files import keep_token_private, sessions_folder

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_for_its_owner_alone(home: Path) -> None:
    keep_token_private()
    file = home / ".ray/auth_token"
    token = file.read_text()
    assert len(token) == 64 and (mode(file), mode(file.parent)) == (0o600, 0o700)
    keep_token_private()
    assert file.read_text() == token and list(file.parent.iterdir()) == [file]


def test_a_token_that_ray_has_written_for_everybody_is_closed(home: Path) -> None:
    file = home / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("mine")
    file.chmod(0o644)
    keep_token_private()
    assert file.read_text() == "mine" and mode(file) == 0o600


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "/t")]
)
def test_where_the_environment_says_it_nothing_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be_written_to_is_left_to_ray(home: Path) -> None:
    (home / ".ray").write_text("a file")
    keep_token_private()
    assert (home / ".ray").read_text() == "a file"


def test_sessions_are_in_a_folder_that_nobody_else_may_enter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    folder = sessions_folder()
    assert folder.parent.parent == home and mode(folder.parent) == 0o700
    folder.parent.chmod(0o777)
    assert sessions_folder() == folder and mode(folder.parent) == 0o700
    folder.parent.rmdir()
    folder.parent.symlink_to(home)
    with pytest.raises(ClusterError, match="belongs to somebody else; remove it, or set RAY_TMPDIR"):
        sessions_folder()
