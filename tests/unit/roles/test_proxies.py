"""Which calls go through a proxy."""

from __future__ import annotations

import pytest

from roles.proxies import proxy_of, spare_loopback

PROXY = "http://proxy:3128"


@pytest.fixture(autouse=True)
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", PROXY)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "127.1.2.3", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_this_machine_is_never_asked_for_at_a_proxy(host: str) -> None:
    assert proxy_of(f"http://{host}/score") is None


@pytest.mark.parametrize(
    ("excluded", "host", "direct"),
    [
        ("", "reward", False),
        ("*", "reward", True),
        ("other, reward", "reward", True),
        ("reward", "my-reward", False),
        ("corp", "a.corp", True),
        (".corp:80", "a.corp", True),
        ("corp", "10.0.0.1", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3:8000", "10.1.2.3", True),
        ("fd00::1", "[fd00::1]:8000", True),
        ("[fd00::1]", "[fd00::1]:8000", True),
        ("[fd00::1]:8000", "[fd00::1]:8000", True),
        ("fd00::/8", "[fd00::1]", True),
        ("fd00::/8", "[fe80::1]", False),
        (" ,:,[", "reward", False),
    ],
)
def test_no_proxy_names_what_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, excluded: str, host: str, direct: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", excluded)
    assert proxy_of(f"http://{host}/score") == (None if direct else PROXY)


def test_the_proxy_of_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("https://reward/") is None
    monkeypatch.setenv("ALL_PROXY", "any:1")
    assert proxy_of("https://reward/") == "http://any:1" and proxy_of("http://reward/") == PROXY


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "corp, [fd00::1] ,::1"}, "corp,fd00::1,::1,localhost,127.0.0.1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
    ],
)
def test_this_machine_joins_no_proxy(said: dict[str, str], then: str) -> None:
    environment = dict(said)
    spare_loopback(environment)
    assert environment == {"no_proxy": then, "NO_PROXY": then}
    spare_loopback(environment)
    assert environment["no_proxy"] == then
