"""Whatever a file holds, it becomes a configuration that loads, or is refused by a ConfigError."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.loading import validate
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.importing.importer import LARGEST_SCRIPT
from orchestrator.importing.openrlhf import import_openrlhf
from orchestrator.importing.option_table import option_table
from orchestrator.importing.trl import import_trl
from orchestrator.importing.verl import import_verl

IMPORTERS = {"openrlhf": import_openrlhf, "verl": import_verl, "trl": import_trl}
NUMBERS = [True, 0, -1, 1, 10**30, 0.5, -2.5, float("inf"), float("nan"), "1e3"]
TEXTS = ["", "$X", "a\nb", "\x07", "é # x", "[", "a,b", "http://[", "http://a:1", "x" * 500]
JUNK = st.sampled_from([None, *NUMBERS, *TEXTS, [], [1], [1, 2], ["a", None], [[1]], {}, {"a": 1}])
ALWAYS = {"openrlhf": "actor.num_nodes", "verl": "trainer.nnodes", "trl": "kl_coef"}


def whole(framework: str, data: dict[str, Any]) -> dict[str, Any]:
    return {ALWAYS[framework]: 1, **data}


def given_to(framework: str) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from([*option_table(framework).options, "unknown.option", "a b", "\x07"])
    return st.dictionaries(names, JUNK, max_size=4).map(lambda data: whole(framework, data))


FILES = st.sampled_from(list(IMPORTERS)).flatmap(lambda name: st.tuples(st.just(name), given_to(name)))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(FILES)
def test_any_values(tmp_path_factory: pytest.TempPathFactory, file: tuple[str, dict[str, Any]]) -> None:
    framework, data = file
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=False))
    with suppress(ConfigError):
        assert validate(parse_yaml(IMPORTERS[framework](path).text))


@pytest.mark.parametrize(
    ("option", "given", "told"),
    [
        ("reward.clip_range", 0, r"reward\.clip_range=\[0\]: 1 of 2 numbers; write all of them"),
        ("reward.clip_range", [], "0 of 2 numbers"),
    ],
)
def test_too_few_numbers_are_refused(tmp_path: Path, option: str, given: Any, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(whole("openrlhf", {option: given})))
    with pytest.raises(ConfigError, match=told):
        import_openrlhf(path)


@pytest.mark.parametrize("framework", IMPORTERS)
@pytest.mark.parametrize("content", [b"\xff\xfe", b"'open", b"- 1\n- 2\n", b"\x00", b"x" * (LARGEST_SCRIPT + 1)])
def test_files_of_something_else_are_refused(tmp_path: Path, framework: str, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        IMPORTERS[framework](path)


SCRIPTS = {
    "openrlhf": "python -m openrlhf.cli.train_ppo_ray --actor.num_nodes 1 --pretrain a/b",
    "verl": "python3 -m verl.trainer.main_ppo trainer.nnodes=1 data.train_files=a.parquet",
    "trl": "accelerate launch examples/scripts/ppo/ppo.py --sft_model_path a/b --kl_coef 0.1",
}
FILES_OF = {
    "openrlhf": "actor.num_nodes: 1\ntrain.batch_size: 8",
    "verl": "trainer: {nnodes: 1, n_gpus_per_node: 8}\ndata: {train_batch_size: 8}",
    "trl": '{"sft_model_path": "a/b", "kl_coef": 0.1, "seed": 3}',
}


@pytest.mark.parametrize("given", [SCRIPTS, FILES_OF], ids=["script", "keys"])
@pytest.mark.parametrize("theirs", list(IMPORTERS))
def test_the_file_of_another_framework_is_sent_to_its_importer(
    given: dict[str, str], theirs: str, tmp_path: Path
) -> None:
    file = tmp_path / "theirs"
    file.write_text(given[theirs])
    for ours, read in IMPORTERS.items():
        if ours != theirs:
            with pytest.raises(ConfigError, match=f"; use: tetrarch import-{theirs} {file}$"):
                read(file)
    with suppress(ConfigError):  # what is missing in it is another matter
        IMPORTERS[theirs](file)
    with pytest.raises(ConfigError) as caught:
        file.write_text("nothing: 1")
        IMPORTERS[theirs](file)
    assert "use: tetrarch import-" not in str(caught.value)
