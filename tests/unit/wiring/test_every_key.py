"""No key is forgotten: each leaf of the configuration is proved by a test here, or changes no number for a reason."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.config.roots import AnyConfig
from tests.unit.wiring import (
    test_dpo_keys,
    test_model_keys,
    test_prompt_keys,
    test_retraining_keys,
    test_reward_keys,
    test_reward_training_keys,
    test_rollout_keys,
)
from tests.unit.wiring.actor_cases import actor_cases
from tests.unit.wiring.critic_cases import critic_cases
from tests.unit.wiring.driver_cases import driver_cases
from tests.unit.wiring.schema import NO_NUMBERS, leaves, reason
from tests.unit.wiring.test_reward_training_keys import reward_training_cases
from tests.unit.wiring.test_sft_keys import sft_cases

FOLDER = Path("FOLDER")
LEAVES = list(leaves(AnyConfig))
TABLES = (actor_cases, critic_cases, driver_cases, reward_training_cases, sft_cases)
TESTS = (
    *(test_model_keys, test_prompt_keys, test_reward_keys, test_reward_training_keys, test_rollout_keys),
    *(test_dpo_keys, test_retraining_keys),
)


def proved() -> set[str]:
    """What the tables and the tests of this folder say that they prove; their own patterns are written out."""
    cases = {case.key for table in TABLES for case in table(FOLDER)}
    patterns = [pattern for module in TESTS for pattern in module.PROVES]
    return cases | {key for key in LEAVES for pattern in patterns if fnmatchcase(key, pattern)}


def test_the_schema_is_walked() -> None:
    assert len(LEAVES) == len(set(LEAVES)) > 300
    assert {"ppo.policy.clip_high", "ppo.policy.mean=constant", "reward<ensemble>.combine<weighted>.weights"} <= set(
        LEAVES
    )
    assert {"actor.lora.targets", "actor.lora.targets=all-linear", "ppo.advantage<rloo>"} <= set(LEAVES)


def test_every_key_that_changes_numbers_is_proved() -> None:
    known = proved()
    missing = [key for key in LEAVES if key not in known and reason(key) is None]
    assert missing == [], "add a case, or a reason to NO_NUMBERS"


def test_no_table_speaks_of_keys_that_do_not_exist() -> None:
    assert sorted(proved() - set(LEAVES)) == []
    for pattern in (*NO_NUMBERS, *(pattern for module in TESTS for pattern in module.PROVES)):
        assert any(fnmatchcase(key, pattern) for key in LEAVES), pattern


def test_what_is_proved_is_not_excused() -> None:
    assert sorted(key for key in proved() if reason(key) is not None) == []
