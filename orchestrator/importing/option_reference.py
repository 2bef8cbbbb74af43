"""What becomes of the options of other frameworks, as Markdown tables: the option tables flow in, text flows out.

    python -m orchestrator.importing.option_reference       writes them into orchestrator/README.md

Example of a row: `actor.eps_clip` (once `eps_clip`), default there `0.2`, here `ppo.policy.clip`.
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.importing.option_table import TABLES, Option, OptionTable, option_table

OPTIONS_HEADING = "## Options of other frameworks"
README_OF_OPTIONS = Path("orchestrator/README.md")
ABOUT_OPTIONS = """\
Written from `orchestrator/importing/*.yaml` by `python -m orchestrator.importing.option_reference`. An option is
carried (by the keys in the last column), or it means nothing here, or it is missing here. What a file gives and no key
says is told at the head of the configuration that is written.
"""


def option_reference() -> str:
    """Markdown: a table for each framework."""
    return "\n".join(_table(option_table(framework)) for framework in TABLES)


def with_options(readme: str) -> str:
    """The README with the tables as its last section."""
    begin = readme.find(OPTIONS_HEADING)
    before = readme[:begin] if begin >= 0 else readme.rstrip() + "\n\n"
    return f"{before}{OPTIONS_HEADING}\n\n{ABOUT_OPTIONS}\n{option_reference()}"


def _table(table: OptionTable) -> str:
    rows = "".join(_option_row(option) for option in table.options.values())
    return f"### {table.framework} {table.version}\n\n| option | default there | here |\n|---|---|---|\n{rows}"


def _option_row(option: Option) -> str:
    old = f" (once `{'`, `'.join(option.old)}`)" if option.old else ""
    default = "" if option.default is None else f"`{json.dumps(option.default)}`"
    carried = " and ".join(f"`{key}`" for key in option.keys) or option.by
    here = carried or (f"means nothing: {option.moot}" if option.moot else f"missing: {option.missing}")
    return f"| `{option.name}`{old} | {default} | {here.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    README_OF_OPTIONS.write_text(with_options(README_OF_OPTIONS.read_text(encoding="utf-8")), encoding="utf-8")
