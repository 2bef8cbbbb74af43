"""The door of `tetrarch submit`: what travels, and where to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.odd import yaml_texts
from tests.unit.fuzz.test_configurations import OVERRIDES, world_leaves
from tests.unit.fuzz.world import World

OPTIONS = {
    "--address": [
        "",
        "x",
        "http://head:8265",
        "head",
        "ray://head:1",
        "http://[::1",
        "http://h:99999",
        "http://u:p@h",
        "\0",
    ],
    "--command": ["", "train", "reward", "sft", "x", "submit", "\ud800", "-"],
    "--working-dir": ["", ".", "/", "/nowhere", "~nobody", "\0", "a" * 5000, "/dev/null", "/proc/self/mem"],
    "--resume-from": ["0", "-1", "1", "x", "9" * 40, "1.5", ""],
}
IGNORED = b"# comment\n/runs/\n*.ckpt\n!keep\n**/x\n[a-z]?\n"


def refusal(world: World, *words: str, **options: str) -> str | None:
    said = {"--working-dir": str(world.root), "--address": "http://head:8265", "--command": "train", **options}
    return world.refusal("submit", *(f"{name}={value}" for name, value in said.items()), "--", world.file, *words)


@pytest.mark.parametrize("command", ["train", "reward", "sft"])
def test_the_job_is_sound(world: World, command: str) -> None:
    assert refusal(world, **{"--command": command}) is None


@examples(20)
@given(st.data(), yaml_texts)
def test_an_odd_override_of_a_job(world: World, data: st.DataObject, text: str) -> None:
    leaf = data.draw(st.sampled_from(world_leaves(world)))
    refusal(world, data.draw(st.sampled_from([*OVERRIDES, f"{leaf}={text}", f"{leaf}={text}"])))


@examples(20)
@given(st.data(), st.sampled_from(sorted(OPTIONS)))
def test_an_odd_option(world: World, data: st.DataObject, name: str) -> None:
    refusal(world, **{name: data.draw(st.sampled_from(OPTIONS[name]) | st.text(max_size=8))})


@examples(10)
@given(damaged(IGNORED), st.sampled_from([".gitignore", ".rayignore", "inputs/.gitignore"]))
def test_a_damaged_list_of_what_does_not_travel(world: World, data: bytes, name: str) -> None:
    file = world.write_bytes(data, name)
    try:
        refusal(world)
    finally:
        file.unlink()
