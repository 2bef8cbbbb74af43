"""A shell script → its commands as words, with the variables that it sets put in. Nothing is run.

    MODEL=meta-llama/Llama-3-8B                        [["python3", "-m", "openrlhf.cli.train_ppo_ray",
    ARGS=(--actor.num_nodes ${NODES:-2} # nodes          "--actor.num_nodes", "2",
      --actor.model_name_or_path "$MODEL")               "--actor.model_name_or_path", "meta-llama/Llama-3-8B"]]
    python3 -m openrlhf.cli.train_ppo_ray "${ARGS[@]}"

Quotes, comments, line continuations, arrays, `${X:-default}`, whole-number arithmetic, here-documents and `bash -c "…"`
are read. What only a run of the script could tell (`$(pwd)`, `$1`, a variable that is set elsewhere) stays as written,
with its `$`. Of `if` and `for` every line is read once, in order.
"""

from __future__ import annotations

import re

from orchestrator.importing.shell_variables import GLUE, ScriptError, Variables, as_one_word

DEEPEST = 20
"""Scripts in scripts; deeper ones are not read."""
NAME = re.compile(r"[A-Za-z_]\w*")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
SETTERS = frozenset({"export", "declare", "local", "readonly", "typeset"})
SHELLS = frozenset({"bash", "sh", "zsh"})
ENDS = frozenset("\n;&|(){}")
BLANK = frozenset(" \t\r")
REDIRECTION = re.compile(r"\d*(<<<|<<-?|&?>>|&>|[<>]&|[<>]\(|>\||[<>])")
SHELL_KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "time", "exec", "nohup"})
"""Words before a command that are no part of it."""


def commands(text: str) -> list[list[str]]:
    """The commands in their order, each with at least one word. ScriptError if a quote or bracket is left open."""
    found = _Script(text.replace(GLUE, ""), Variables(), 0).read()
    return [[word.replace(GLUE, " ") for word in words] for words in found]


class _Script:
    """A reader at one place in the text."""

    def __init__(self, text: str, variables: Variables, depth: int) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._variables = variables
        self._depth = depth
        self._documents: list[tuple[str, list[str]]] = []
        self._found: list[list[str]] = []

    def read(self) -> list[list[str]]:
        words: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if self._skip_blank():
                continue
            if character in ENDS and not (character == "{" and words):
                self._at += 1
                self._end(words)
                words = []
                if character == "\n":
                    self._skip_documents()
            elif redirection := REDIRECTION.match(self._text, self._at):
                self._redirect(redirection, words)
            elif not words and (assignment := ASSIGNMENT.match(self._text, self._at)):
                self._assign(assignment)
            else:
                words += self._word()
                words = [] if len(words) == 1 and words[0] in SHELL_KEYWORDS else words
        self._end(words)
        return self._found

    def _skip_blank(self) -> bool:
        """Whether there was a space, a continued line or a comment."""
        rest = self._text[self._at : self._at + 2]
        if rest[0] in BLANK:
            self._at += 1
        elif rest == "\\\n":
            self._at += 2
        elif rest[0] == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end
        else:
            return False
        return True

    def _end(self, words: list[str]) -> None:
        """A command is complete: it sets variables, is a script in a script, or is one that was looked for."""
        if not words:
            return
        if words[0] in SETTERS:
            for word in words[1:]:
                name, equals, value = word.partition("=")
                if equals and NAME.fullmatch(name):
                    self._variables.set(name, [value])
            return
        self._found.append(words)
        inner = " ".join(words[1:]) if words[0] == "eval" else _script_of_shell(words)
        if inner is not None and self._depth < DEEPEST:
            self._found.pop()
            self._found += _Script(inner, self._variables, self._depth + 1).read()

    def _redirect(self, operator_: re.Match[str], words: list[str]) -> None:
        """Where output goes is nothing to us; a here-document may become a variable (`read -d '' NAME <<EOF`)."""
        self._at = operator_.end()
        if operator_[1] in ("<(", ">("):
            self._at -= 1
            self._balanced("(", ")")
            return
        while self._at < len(self._text) and self._skip_blank():
            pass
        target = self._word() if self._at < len(self._text) and self._text[self._at] not in ENDS else []
        if operator_[1].startswith("<<") and operator_[1] != "<<<":
            self._documents.append(("".join(target), list(words)))

    def _skip_documents(self) -> None:
        for mark, words in self._documents:
            lines: list[str] = []
            while self._at < len(self._text):
                end = self._text.find("\n", self._at)
                line = self._text[self._at : end if end >= 0 else len(self._text)]
                self._at += len(line) + 1
                if line.strip() == mark:
                    break
                lines.append(line)
            if words and words[0] == "read":
                self._variables.set(words[-1], ["\n".join(lines).replace("\\\n", " ")])
        self._documents = []

    def _assign(self, assignment: re.Match[str]) -> None:
        name, more = assignment[1], bool(assignment[2])
        self._at = assignment.end()
        if self._text.startswith("(", self._at):
            self._variables.set(name, self._array(), more)
            return
        here = self._text[self._at : self._at + 1]
        value = "" if not here or here in BLANK or here in ENDS else " ".join(self._word())
        before = "".join(self._variables.get(name) or []) if more else ""
        self._variables.set(name, [before + value])

    def _array(self) -> list[str]:
        self._at += 1
        values: list[str] = []
        while not self._text.startswith(")", self._at):
            if self._at >= len(self._text):
                raise ScriptError("a list `(` is not closed")
            if self._text[self._at] in "\n;&|":
                self._at += 1
            elif not self._skip_blank():
                values += self._word(array=True)
        self._at += 1
        return values

    def _word(self, array: bool = False) -> list[str]:
        """The word that begins here: none, one or (of an expansion without quotes) several words."""
        fields, quoted = [""], False
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in BLANK or character in "\n;&|)" or (character in "<>(" and not array):
                break
            if character == "'":
                fields[-1] += self._until("'")
                quoted = True
            elif character == '"':
                _join(fields, self._in_quotes())
                quoted = True
            elif character == "\\":
                fields[-1] += self._text[self._at + 1 : self._at + 2].replace("\n", "")
                self._at += 2
            elif self._text.startswith("$'", self._at):
                self._at += 1
                fields[-1] += self._until("'").replace("\\n", "\n").replace("\\t", "\t")
                quoted = True
            elif character in "$`":
                _join(fields, [part for value in self._expansion() for part in value.split()])
            else:
                fields[-1] += character
                self._at += 1
        return fields if quoted or fields != [""] else []

    def _until(self, quote: str) -> str:
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            raise ScriptError(f"a quote {quote} is not closed")
        inside, self._at = self._text[self._at + 1 : end], end + 1
        return inside

    def _in_quotes(self) -> list[str]:
        """What stands between double quotes: one word, or as many as the list in `"${X[@]}"` has."""
        fields = [""]
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == '"':
                self._at += 1
                return fields
            if character == "\\" and self._text[self._at + 1 : self._at + 2] in tuple('$`"\\\n'):
                fields[-1] += self._text[self._at + 1].replace("\n", "")
                self._at += 2
            elif character in "$`":
                _join(fields, self._expansion())
            else:
                fields[-1] += character
                self._at += 1
        raise ScriptError('a quote " is not closed')

    def _expansion(self) -> list[str]:
        """What begins with `$` or a backquote: its values, or itself where only a run could tell them."""
        start = self._at
        if self._text[start] == "`":
            return [as_one_word(f"`{self._until('`')}`")]
        self._at += 1
        if self._text.startswith("((", self._at):
            inside = self._balanced("(", ")")
            number = self._variables.calculated(inside[1:-1])
            return [number if number is not None else as_one_word(f"$({inside})")]
        if self._text.startswith("(", self._at):
            return [as_one_word(f"$({self._balanced('(', ')')})")]
        if self._text.startswith("{", self._at):
            inside = self._balanced("{", "}")
            return self._parameter(inside, as_one_word(f"${{{inside}}}"))
        if name := NAME.match(self._text, self._at):
            self._at = name.end()
            values = self._variables.get(name[0])
            return [f"${name[0]}"] if values is None else values[:1]
        special = self._text[self._at : self._at + 1]
        if special and special in "@*#?$!-0123456789":
            self._at += 1
            return [] if special in "@*" else [f"${special}"]
        return [self._text[start]]

    def _parameter(self, inside: str, written: str) -> list[str]:
        """`X`, `X[@]`, `X:-default` and their like."""
        found = re.fullmatch(r"([A-Za-z_]\w*|\d+|[@*])(\[[@*]\]|\[\d{1,6}\])?(?:(:?[-=+])(.*))?", inside, re.DOTALL)
        if found is None:
            return [written]
        name, index, operation, other = found.groups()
        values = self._variables.get(name)
        if index and values is not None:
            at = index[1:-1]
            values = values if at in "@*" else values[int(at) : int(at) + 1]
        elif values is not None:
            values = values[:1]
        given = values is not None and (any(values) or ":" not in (operation or ""))
        if operation and operation[-1] == "+":
            return self._expanded(other) if given else [""]
        if operation and not given:
            values = self._expanded(other)
            if operation[-1] == "=":
                self._variables.set(name, values)
        if values is None:
            return [] if index or name in "@*" else [written]
        return [" ".join(values)] if index == "[*]" else values

    def _expanded(self, text: str) -> list[str]:
        if self._depth >= DEEPEST:
            return [text]
        inner = _Script(text, self._variables, self._depth + 1)
        words: list[str] = []
        while inner._at < len(text):
            if not inner._skip_blank():
                before = inner._at
                words += inner._word(array=True)
                inner._at += inner._at == before  # a bracket that belongs to no word
        return [" ".join(words)]

    def _balanced(self, opening: str, closing: str) -> str:
        """The text between the bracket here and its partner."""
        start, open_ = self._at + 1, 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "\\":
                self._at += 1
            elif character == "'":
                end = self._text.find("'", self._at + 1)
                self._at = end if end > 0 else self._at
            open_ += (character == opening) - (character == closing)
            self._at += 1
            if not open_:
                return self._text[start : self._at - 1]
        raise ScriptError(f"a bracket {opening} is not closed")


def _join(fields: list[str], values: list[str]) -> None:
    """Add an expansion to the word so far: its first value ends that word, the others begin new ones."""
    if values:
        fields[-1] += values[0]
        fields += values[1:]


def _script_of_shell(words: list[str]) -> str | None:
    """The text of `bash -c TEXT`, also behind `srun …` and the like."""
    for number, word in enumerate(words[:-2]):
        if word.rpartition("/")[2] in SHELLS:
            flags = [n for n in range(number + 1, len(words) - 1) if re.fullmatch(r"-[a-z]*c", words[n])]
            if flags:
                return words[flags[0] + 1]
    return None
