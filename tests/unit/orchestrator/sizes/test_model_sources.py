"""Where a model's config.json comes from: a folder, the hub's cache, the table, the hub; what is said if nowhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from orchestrator.errors import ConfigError
from orchestrator.sizes import model_sources
from orchestrator.sizes.architectures import decoder_of
from orchestrator.sizes.model_sizes import model_size
from orchestrator.sizes.model_sources import KNOWN_MODELS, UnknownModel, known_shapes, read_config
from roles.config.models import ModelConfig
from roles.model_files import hub as hub_files
from roles.model_files.hub import file_text

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
NEWER = SMALL | {"model_type": "llama-of-next-year", "dtype": "bfloat16"}


class Hub(BaseHTTPRequestHandler):
    """A hub with four models."""

    asked: list[str]
    go_on = threading.Event()
    """Until then a slow one is not answered."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        owner_and_name, _, file = self.path.strip("/").partition("/resolve/main/")
        if owner_and_name == "some/slow":
            self.go_on.wait(200)
        index = {"metadata": {"total_size": 2 * 200_000}, "weight_map": {}}
        files: dict[tuple[str, str], Any] = {
            ("some/model", "config.json"): SMALL,
            ("some/slow", "config.json"): SMALL,
            ("some/newer", "config.json"): NEWER,
            ("some/newer", "model.safetensors.index.json"): index,
        }
        said = files.get((owner_and_name, file))
        with suppress(OSError):  # who asked has not waited
            self.send_response(200 if said else 401 if owner_and_name == "some/gated" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that it is asked for."""
    Hub.asked = []
    Hub.go_on.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()
    yield Hub.asked
    Hub.go_on.set()
    forget()
    server.shutdown()
    thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No hub, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    forget()
    yield
    forget()


def forget() -> None:
    for function in (file_text, model_sources._named, model_size):
        function.cache_clear()


def written(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def read(path: str, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return read_config(ModelConfig(path=path, **options), "actor.model", tmp_path / "models")


def test_of_a_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine", SMALL | {"layer_types": ["a", "b", "c"]})
    assert read(folder, tmp_path)["num_hidden_layers"] == 3
    assert read(folder, tmp_path, layers=2) == SMALL | {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    with pytest.raises(ConfigError, match=r"actor\.model\.layers=4, but the model .*mine has 3; use fewer"):
        read(folder, tmp_path, layers=4)
    (tmp_path / "mine" / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"config\.json is not a JSON object; fetch it anew"):
        read(folder, tmp_path)


@pytest.mark.parametrize("place", ["the hub's", "the run's"])
def test_a_download_on_this_machine_needs_no_network(
    place: str, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it says more than our table."""
    cache = tmp_path / ("hub" if place == "the hub's" else "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("models--me--mine", "models--gpt2"):
        written(cache / name / "snapshots" / "abc", SMALL)
        (cache / name / "refs").mkdir()
        (cache / name / "refs" / "main").write_text("abc")
        written(cache / name / "snapshots" / "def", NEWER)
    assert read("me/mine", tmp_path) == read("gpt2", tmp_path) == read("me/mine", tmp_path, revision="abc") == SMALL
    assert read("me/mine", tmp_path, revision="def") == NEWER


def test_the_table_needs_no_network(tmp_path: Path, offline: None) -> None:
    assert read("meta-llama/Llama-3.1-8B-Instruct", tmp_path) == known_shapes()["meta-llama/Llama-3.1-8B"]
    assert read("Qwen/Qwen3-32B", tmp_path, layers=3)["num_hidden_layers"] == 3


def test_an_unknown_model_is_refused_with_the_nearest_names_and_what_to_do(tmp_path: Path, offline: None) -> None:
    with pytest.raises(UnknownModel) as refused:
        read("me/Qwen3-33B", tmp_path)
    said = str(refused.value)
    assert said.startswith("actor.model.path=me/Qwen3-33B is not a folder, its config.json is not in the hub's cache")
    assert "HF_HUB_OFFLINE is set" in said
    assert "put its config.json in a folder and name that, set HF_HOME" in said
    assert said.partition("known models, such as ")[2].startswith("Qwen/Qwen3-32B, ")


def test_online_one_small_file_is_read_once(tmp_path: Path, hub: list[str]) -> None:
    assert read("some/model", tmp_path) == read("some/model", tmp_path, layers=None) == SMALL
    assert hub == ["/some/model/resolve/main/config.json"]
    with pytest.raises(UnknownModel, match=r"the hub did not give it \(HTTP 404\)"):
        read("some/model", tmp_path, revision="v1")
    assert hub.pop() == "/some/model/resolve/v1/config.json"
    with pytest.raises(UnknownModel, match=r"the hub did not give it \(HTTP 401\)"):
        read("some/gated", tmp_path)
    with pytest.raises(UnknownModel, match=r"the hub did not give it \(no such folder\)"):
        read("./some/model", tmp_path)
    assert len(hub) == 2


def test_a_slow_hub_does_not_keep_a_plan(tmp_path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "HUB_S", 0.2)
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(UnknownModel, match=r"did not give it \((no answer in 0\.2 s|.*timed out.*)\)"):
            read("some/slow", tmp_path)
    assert time.monotonic() - began < 60
    while not hub:  # it may hear late of who has not waited
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    assert len(hub) == 1


def test_an_architecture_that_nobody_knows_is_estimated_from_its_weights(tmp_path: Path, hub: list[str]) -> None:
    size = model_size(ModelConfig(path="some/newer"), "actor.model", tmp_path)
    assert size.estimated and size.parameters == 200_000 and size.layer == (200_000 - 2 * 50 * 64) // 3
    value = model_size(ModelConfig(path="some/newer"), "actor.model", tmp_path, value_head=True)
    assert value.parameters == 200_000 - 50 * 64 + 64
    with pytest.raises(UnknownModel, match="is of the kind llama-of-next-year, whose sizes are not understood"):
        model_size(ModelConfig(path=written(tmp_path / "bare", NEWER)), "actor.model", tmp_path)


def test_the_weights_in_a_folder_are_counted_from_their_headers(tmp_path: Path) -> None:
    folder = Path(written(tmp_path / "newer", NEWER))
    for part, shape in enumerate(([1000, 60], [3, 4, 5])):
        header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
        (folder / f"model-{part}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    size = model_size(ModelConfig(path=str(folder)), "actor.model", tmp_path)
    assert size.parameters == 60_060 and size.estimated


def test_every_entry_of_the_table_is_a_shape_that_somebody_has() -> None:
    assert len(known_shapes()) > 300
    for name, config in known_shapes().items():
        assert config["model_type"] == "gemma3" or decoder_of(config) is not None, name


def test_models_of_one_shape_may_read_samples_of_other_lengths() -> None:
    said, names = (
        "max_position_embeddings",
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3.1-8B", "RLHFlow/LLaMA3-SFT"),
    )
    old, new, tuned = (known_shapes()[name] for name in names)
    assert (old[said], new[said]) == (8192, 131072) and said not in tuned
    assert {**old, said: 0} == {**new, said: 0} == {**tuned, said: 0}


def test_every_context_in_the_table_is_that_of_one_known_model() -> None:
    context = yaml.safe_load(KNOWN_MODELS.read_text())["context"]
    named = [name for names in context.values() for name in names]
    assert len(named) == len(set(named)) and set(named) <= known_shapes().keys()
