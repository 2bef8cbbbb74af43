"""What a script's commands are, without running it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.importing.shell_variables import ScriptError
from orchestrator.importing.shell_words import commands

LISTS = """\
#!/bin/bash
ROOT=$(cd "$(dirname "$0")/.." && pwd)   # a run would tell
NODES=${NODES:-2}
ARGS=(
   --nodes ${NODES}      # how many ) of them
   # --gone 1

   --out "${ROOT}/my run"
)
ARGS+=(--last)
ray job submit --address="http://127.0.0.1:8265" \\
   --runtime-env-json='{"working_dir": "/there"}' \\
   -- python3 -m program "${ARGS[@]}" --again ${ROOT} >> log 2>&1 &
"""
NESTED = """\
export TOKENS=$((1024 * (NODES + 1) - 1))
NODES=3
TOKENS=$((1024 * (NODES + 1) - 1))
for ((i = 1; i < NODES; i++)); do
sleep 1s;
done
srun --nodes=1 bash -lc "pip install x \\
&& python3 -m program --tokens $TOKENS --json '{\\"a\\": 1}' --text \\"two words\\" --token {my_token}" &>> log
"""


def last(text: str) -> list[str]:
    return commands(text)[-1]


def test_lists_comments_and_defaults() -> None:
    words = last(LISTS)
    assert words[:4] == ["ray", "job", "submit", "--address=http://127.0.0.1:8265"]
    assert words[4:9] == ['--runtime-env-json={"working_dir": "/there"}', "--", "python3", "-m", "program"]
    root = '$(cd "$(dirname "$0")/.." && pwd)'
    assert words[9:] == ["--nodes", "2", "--out", f"{root}/my run", "--last", "--again", root]


def test_a_script_in_a_script_with_arithmetic() -> None:
    expected = ["python3", "-m", "program", "--tokens", "4095", "--json", '{"a": 1}', "--text", "two words"]
    assert last(NESTED) == [*expected, "--token", "{my_token}"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("A=1; B=$A$A; p '$A' \"$B\" \\$A", ["p", "$A", "11", "$A"]),
        ("p ${A:-x} ${A-y} ${A:=z} $A", ["p", "x", "y", "z", "z"]),
        ("A=; p ${A:-x}", ["p", "x"]),
        ("A=1\np ${A:+--flag} ${B:+--no}", ["p", "--flag"]),
        ('A=(a b); p ${A[1]} "${A[*]}" $A', ["p", "b", "a b", "a"]),
        ("CMD='p --a 1'\neval $CMD --b", ["p", "--a", "1", "--b"]),
        ("CMD='p --a 1'\n$CMD --b", ["p", "--a", "1", "--b"]),
        ("read -r -d '' CMD <<EOF\np \\\n  --a 1\nEOF\nrun $CMD", ["run", "p", "--a", "1"]),
        ("if [ $# -gt 1 ]; then A=1; else A=2; fi; p $A", ["p", "2"]),
        ("p f=\"['$A', b]\" g=['x','y'] h=$HOME/d $@", ["p", "f=['$A', b]", "g=[x,y]", "h=~/d"]),
        ("p a$'\\n'b `date` $((1/0)) ${A%b}", ["p", "a\nb", "`date`", "$((1/0))", "${A%b}"]),
        ("local A=3\nB=1 p --n=$A | tee x", ["tee", "x"]),
    ],
)
def test_words(script: str, words: list[str]) -> None:
    assert last(script) == words


@pytest.mark.parametrize("script", ["p 'open", 'p "open', "A=(a", "p $(open", "p ${open"])
def test_what_is_left_open_is_refused(script: str) -> None:
    with pytest.raises(ScriptError, match="is not closed"):
        commands(script)


def test_a_variable_that_doubles_in_each_line_is_refused() -> None:
    with pytest.raises(ScriptError, match="more than 2000000 characters"):
        commands("A=aaaaaaaa\n" + "A=$A$A\n" * 64)


PIECES = st.sampled_from([*"ab$(){}[]<>|&;\"'`\\#=+-:@* \n", "A=", "${", "$((", "<<E\n", "A[@]", 'bash -c "', "read A"])


@settings(deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text_is_read_or_refused(script: str) -> None:
    with suppress(ScriptError):
        assert all(words for words in commands(script))
