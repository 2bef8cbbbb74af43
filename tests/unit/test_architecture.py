"""The shape that DESIGN fixes: layers, light configuration modules, top level, lock file, configurations."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import cache_from_source, find_spec
from pathlib import Path

import pytest

from orchestrator.config.loading import load_all

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["orchestrator", "roles", "cluster"]
SOURCES = sorted(source for package in PACKAGES for source in (ROOT / package).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

FORBIDDEN = {
    # `roles` and `cluster` know neither each other nor the driver; only `cluster` knows Ray; engines stay in `roles`.
    "roles": {"cluster", "orchestrator", "ray"},
    "cluster": {"roles", "orchestrator", "vllm", "deepspeed", "transformers"},
    "orchestrator": {"ray", "vllm", "deepspeed"},
}
ROOMS = {
    "orchestrator": {
        "commands": "stages viewer checks planning importing sizes data run timeline config",
        "viewer": "run report config",
        "stages": "ppo groups planning sizes data run report timeline config",
        "ppo": "groups data run report config",
        "checks": "sizes data run report timeline tracking config",
        "groups": "config",
        "planning": "timeline sizes config",
        "importing": "config",
        "sizes": "data config",
        "data": "config",
        "run": "report config",
        "report": "timeline tracking config",
        "tracking": "config",
        "timeline": "",
        "config": "",
    },
    "roles": {
        "actor": "transfer zero models losses config",
        "critic": "zero models losses config",
        "reference": "zero models config",
        "reward_model": "zero models text config",
        "reward_trainer": "zero models losses config",
        "supervised": "zero",
        "preference_policy": "zero losses config",
        "reward_function": "reward_call functions text config",
        "reward_service": "reward_call functions http_service text config",
        "http_service": "functions redaction proxies",
        "reward_call": "functions text",
        "rollout": "rollout_setup generation transfer config",
        "serving_engine": "rollout_setup generation",
        "judge_engine": "rollout_setup generation",
        "rollout_setup": "generation transfer config",
        "transfer": "zero",
        "zero": "models model_files losses text config",
        "models": "model_files losses config",
        "model_files": "text config",
        "generation": "functions text config",
        "losses": "config",
        "functions": "",
        "text": "",
        "config": "",
        "redaction": "",
        "proxies": "",
    },
    "cluster": {
        "runtime": "ranks capacity placement estimate",
        "ranks": "placement",
        "capacity": "placement",
        "estimate": "placement",
        "placement": "",
    },
}
"""Room → rooms of the same package that it may import; the files in `GROUND` are open to all."""
GROUND = {
    "orchestrator": {
        *("display_text", "errors", "healing_metrics", "known_metrics", "metrics", "metric_types", "training_metrics"),
    },
    "roles": {
        *("batch", "batch_files", "durable", "errors", "measured"),
        *("packing", "rollout_facts", "rows", "scored_parts", "seeds", "shares", "spans"),
    },
    "cluster": {"counts", "errors", "config", "role_table"},
}
ENGINES = {
    "deepspeed": ("roles/zero/",),
    "vllm": ("roles/rollout", "roles/transfer/", "roles/generation/sampling.py", "roles/generation/quick_outputs.py"),
    "ray": ("cluster/ranks/", "cluster/runtime/"),
}
"""Library → the only places that import it."""
LINES, LINES_OF_A_FUNCTION = 300, 50
TOP_LEVEL = {
    *PACKAGES,
    "configs",
    "tests",
    "docker",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "requirements.lock",
    "LICENSE",
}
WRITTEN_BY_US = {"runs", "dist", "__pycache__"}  # not in git


def imported(source: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of each import in a file, those inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), filename=str(source))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_layers(package: str) -> None:
    sources = [source for source in SOURCES if source.is_relative_to(ROOT / package)]
    assert sources
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in sources
        for line, name in imported(source)
        if name in FORBIDDEN[package]
    ]
    assert wrong == []


def module_of(source: Path) -> str:
    return ".".join(source.relative_to(ROOT).with_suffix("").parts)


def modules_in(source: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import of ours in a file, whether a module or a name in it is imported."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), filename=str(source))):
        names = [alias.name for alias in getattr(node, "names", [])]
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            folder = ROOT.joinpath(*node.module.split("."))
            names = [f"{node.module}.{name}" if (folder / f"{name}.py").is_file() else node.module for name in names]
        elif not isinstance(node, ast.Import):
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in PACKAGES)


def room_of(module: str) -> tuple[str, str]:
    package, room = [*module.split("."), ""][:2]
    return package, room


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_along_the_arrows(package: str) -> None:
    """An arrow that is not in `ROOMS` is a decision about the architecture: add it there, or move what is needed."""
    rooms, wrong = ROOMS[package], []
    for source in SOURCES:
        here = room_of(module_of(source))
        if here[0] != package or here[1] in {*GROUND[package], "__main__", "__init__"}:
            continue
        assert here[1] in rooms, f"{source.relative_to(ROOT)} is in no room of the architecture test"
        allowed = {here[1], *rooms[here[1]].split(), *GROUND[package]}
        wrong += [
            f"{source.relative_to(ROOT)}:{line} imports {module}"
            for line, module in modules_in(source)
            if room_of(module)[0] == package and room_of(module)[1] not in allowed
        ]
    assert wrong == []


def test_the_arrows_lead_in_no_circle() -> None:
    for rooms in ROOMS.values():
        TopologicalSorter({room: arrows.split() for room, arrows in rooms.items()}).prepare()


def test_no_file_imports_itself_over_others() -> None:
    graph = {module_of(source): {module for _, module in modules_in(source)} for source in SOURCES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", ENGINES)
def test_an_engine_is_imported_only_where_it_is_at_home(library: str) -> None:
    found = {str(source.relative_to(ROOT)) for source in SOURCES for _, name in imported(source) if name == library}
    assert found
    assert sorted(file for file in found if not file.startswith(ENGINES[library])) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hold_nothing_but_what_they_say(package: str) -> None:
    """No re-exports, which would pull engines in."""
    for source in (ROOT / package).rglob("__init__.py"):
        assert len(ast.parse(source.read_text(encoding="utf-8")).body) == 1, source


def test_the_layer_test_sees_imports_in_functions(tmp_path: Path) -> None:
    source = tmp_path / "role.py"
    source.write_text(
        "def late():\n    from cluster.placement.plan import plan\n    import ray.util\n", encoding="utf-8"
    )
    assert list(imported(source)) == [(2, "cluster"), (3, "ray")]


def test_a_configuration_is_checked_without_the_engines() -> None:
    program = (
        "import sys, cluster.config, cluster.placement.plan, roles.config.models\n"
        "import orchestrator.config.run, orchestrator.config.loading\n"
        f"for path in {[str(path) for path in CONFIGS]!r}: orchestrator.config.loading.load_all(path)\n"
        "print(sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_nothing_else_at_top_level() -> None:
    found = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    assert found - WRITTEN_BY_US <= TOP_LEVEL
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_sizes(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES, "STYLE: a file about 300 lines at most; split it"
    functions = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    too_long = [function for function, lines in functions if lines > LINES_OF_A_FUNCTION]
    assert too_long == [], "STYLE: a function about 40 lines; split it"


def public_names(source: Path) -> Iterator[str]:
    """Classes, type aliases and constants that a file defines; type variables have one meaning everywhere."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar":
            continue
        names = [node.name] if isinstance(node, ast.ClassDef) else [t.id for t in targets if isinstance(t, ast.Name)]
        yield from (name for name in names if not name.startswith("_") and name != "__all__")


def test_a_name_has_one_meaning() -> None:
    """STYLE: one word, one meaning. A reader who meets a class or constant finds one definition of it."""
    homes: dict[str, list[str]] = {}
    for source in SOURCES:
        for name in public_names(source):
            homes.setdefault(name, []).append(module_of(source))
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert twice == {}


def test_a_module_name_is_taken_once() -> None:
    """But for errors, and for rooms of configuration, whose files are called as what they configure."""
    homes: dict[str, list[str]] = {}
    for source in SOURCES:
        if source.stem not in ("__init__", "errors") and source.parent.name != "config":
            homes.setdefault(source.stem, []).append(module_of(source))
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert twice == {}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(source: Path) -> None:
    assert ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_loads_and_says_how_to_start_it(path: Path) -> None:
    assert load_all(path)
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    assert "Needs:" in header
    assert "Start:" in header


def test_lock_file_names_packages_and_nothing_else() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    pinned = re.compile(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[a-z0-9.+]+( +# via [A-Za-z0-9, ().-]+)?")
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    assert "/" not in LOCK


def test_lock_file_has_the_cpu_build_and_leaves_out_what_expects_cuda() -> None:
    names = {re.split(r"[\[=]", line)[0] for line in LOCK.splitlines()}
    assert "torch==2.13.0+cpu" in LOCK
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec", "vllm", "llm", "llama-cpp-python"})


def test_lock_file_follows_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["smoke"], *extras["dev"]]
    locked = {re.split(r"[\[=]", line)[0]: line.split("==")[1].split()[0] for line in LOCK.splitlines() if "==" in line}
    for requirement in wanted:
        name, _, version = requirement.partition("==")
        name = re.split(r"[\[><=!]", name)[0].lower()
        assert name in locked, f"{requirement} is not in requirements.lock; run `make lock`"
        if version:
            assert locked[name].removesuffix("+cpu") == version, f"{requirement}; run `make lock`"
    cpu, gpu = (sorted(re.sub("-cpu|,.*", "", requirement) for requirement in extras[name]) for name in ("cpu", "gpu"))
    for name in ("liger-kernel", "nvidia-ml-py"):  # fused layers; what torch asks for a card's utilization
        gpu.remove(name)
    assert cpu == gpu, "the extras `cpu` and `gpu` are two builds of the same versions"


def test_the_packages_are_compiled() -> None:
    """By the set-up: where nothing may write bytecode, every rank would compile what it imports at each start."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    packages = Path(spec.origin).parents[1]
    used = ("torch/nn/modules/linear.py", "vllm/v1/engine/llm_engine.py", "deepspeed/runtime/engine.py", "ray/actor.py")
    missing = [name for name in used if not Path(cache_from_source(str(packages / name))).is_file()]
    assert missing == [], "remove .venv/.tetrarch-packages and run `make setup`"
