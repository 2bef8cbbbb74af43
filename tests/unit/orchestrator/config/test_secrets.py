"""Secrets on command lines are refused, and those that would be sent unencrypted are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.commands.app import app
from orchestrator.config.loading import load_config
from orchestrator.config.secrets import check_overrides, unencrypted_tokens
from orchestrator.errors import ConfigError
from orchestrator.stages.replay import replayed_settings

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"
HOOK = "https://hooks.slack.com/services/T01ABCDEF/B01ABCDEF/a1B2c3D4e5F6g7H8i9J0k1L2"


@pytest.mark.parametrize(
    "override",
    [
        "reward.headers.authorization=Bearer hush",
        "reward={type: remote, urls: ['http://h'], headers: {a: b}}",
        "reward.urls=['https://me:pass@h/x']",
        "reward.urls=['https://h/x?key=abc']",
        f"reward.urls=[{HOOK}]",
    ],
)
def test_an_override_with_a_secret_is_refused_without_showing_it(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides([override])
    assert "holds a secret, and every user of this machine can read the command line" in str(error.value)
    assert not {"hush", "pass", "abc", "a1B2c3D4e5F6g7H8i9J0k1L2"} & set(str(error.value).replace("/", " ").split())
    check_overrides(["reward.urls=['http://h:8000/score']", "steps=3", "reward.headers=null"])


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "serve", "best-of-n", "verify-resume", "plan", "data", "config"]
)
def test_the_commands_refuse_it_too(command: str) -> None:
    remote = "reward={type: remote, urls: ['https://h'], headers: {authorization: 'Bearer hush'}}"
    result = CliRunner().invoke(app, [command, str(TINY), remote])
    assert result.exit_code == 2 and "the override of reward holds a secret" in result.stderr
    assert "hush" not in result.output


def warned(*urls: str, headers: str = "{authorization: Bearer hush}") -> list[str]:
    reward = f"reward={{type: remote, urls: {json.dumps(urls)}, headers: {headers}}}"
    return list(unencrypted_tokens(load_config(TINY, [reward, "critic.model.path=m"])))


def test_a_token_over_plain_http_to_another_machine_is_said() -> None:
    (line,) = warned("http://10.0.0.3:8000/score", "http://127.0.0.1:1/x", "http://localhost:1/x", "http://[::1]:1/x")
    assert line.startswith("reward: a secret goes to http://10.0.0.3:8000/score unencrypted") and "hush" not in line
    assert warned("https://scores.example/x") == [] == warned("http://10.0.0.3:8000/score", headers="{}")
    (line,) = warned("http://me:pass@h/x", headers="{}")
    assert "http://***@h/x" in line


def test_a_judge_s_key_and_a_member_s_are_looked_at_too() -> None:
    endpoint = "{type: endpoint, url: 'http://judge.example/v1/completions', model: m, api_key_env: KEY}"
    members = "{one: {type: remote, urls: ['http://h/x'], headers: {a: b}}}"
    settings = [f"reward={{type: ensemble, members: {members}}}", "critic.model.path=m"]
    judge = f"evaluation.judge={{type: win_rate, against: rows.jsonl, asks: {endpoint}}}"
    found = list(unencrypted_tokens(load_config(TINY, [*settings, judge])))
    assert [line.partition(":")[0] for line in found] == ["reward.members.one", "evaluation.judge.asks"]


def test_an_address_that_is_a_secret_is_looked_at_and_not_shown() -> None:
    hook = "alerts.webhook.secret_url=http://hooks.lan/T0KEN"
    (line,) = unencrypted_tokens(load_config(TINY, [hook]))
    assert line.startswith("alerts.webhook: a secret goes to secret_url unencrypted") and "T0KEN" not in line
    assert not list(unencrypted_tokens(load_config(TINY, [hook.replace("http://", "https://")])))


def test_what_is_replayed_gets_its_secrets_in_a_file_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\nreward: {headers: {a: '**********'}}\n")
    file = replayed_settings(tmp_path, ["reward.headers.a=hush"], tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hush" in file.read_text() and "seed: 1" in file.read_text()
