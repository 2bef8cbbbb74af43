"""Configuration files and overrides: whatever stands there is read, or refused with the key or the line."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.roots import ROOTS
from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.leaves import Leaf, leaves
from tests.unit.fuzz.odd import yaml_texts
from tests.unit.fuzz.world import ROOT, World

FILES = sorted((ROOT / "configs").glob("*.yaml"))
COMMANDS = [*ROOTS, "config", "plan"]
OVERRIDES = [
    *(
        "",
        "=",
        "=1",
        "a",
        "a=",
        "a..b=1",
        ".a=1",
        "a.=1",
        "steps",
        "steps=",
        "steps==1",
        "steps =1",
        " steps=1",
        "steps.x=1",
    ),
    *(
        "prompts=",
        "prompts=x",
        "prompts.train=[]",
        "prompts.train.x.y.z=1",
        "actor[0]=1",
        "reward.urls[0]=x",
        "é=1",
        "\ud800=1",
    ),
    *(
        "steps=\ud800",
        "run_dir=\ud800",
        "run_dir='a\\0b'",
        'run_dir="a\\0b"',
        "\0=1",
        "=" * 500,
        "x" * 5000 + "=1",
        ".".join("a" * 5000) + "=1",
    ),
]


@cache
def world_leaves(world: World) -> list[Leaf]:
    return list(leaves(data=world.data))


def check_leaf(world: World, leaf: Leaf, text: str, command: str) -> None:
    file = world.write(leaf.placed_in(world.data))
    refused = world.refusal(command, file, f"{leaf}={text}")
    if refused is not None and command == "config" and world.refusal(command, file) is None:
        assert leaf.path[-1] in refused, refused


@examples(60)
@given(st.data(), yaml_texts, st.sampled_from(COMMANDS))
def test_an_odd_value_of_any_key(world: World, data: st.DataObject, text: str, command: str) -> None:
    leaf = data.draw(st.sampled_from(world_leaves(world)))
    check_leaf(world, leaf, text, command)


@examples(30)
@given(st.data(), st.sampled_from(COMMANDS))
def test_a_damaged_file(world: World, data: st.DataObject, command: str) -> None:
    sound = data.draw(st.sampled_from([world.file, *FILES])).read_bytes()
    world.refusal(command, world.write_bytes(data.draw(damaged(sound)), "damaged.yaml"))


@examples(30)
@given(
    st.sampled_from(OVERRIDES) | st.text(max_size=10) | st.builds("{}={}".format, st.text(max_size=8), yaml_texts),
    st.sampled_from(COMMANDS),
)
def test_an_odd_override(world: World, override: str, command: str) -> None:
    world.refusal(command, world.file, override)
