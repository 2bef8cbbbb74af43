from __future__ import annotations

import pytest

from cluster.ranks.starting import doing
from cluster.ranks.status import Status

SHARDS = "\rLoading checkpoint shards:  33%|███▎      | 3/9 [00:04<00:08,  1.4s/it]"
VLLM = "\nLoading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03, 1.1it/s]\n"
ENGINE = "roles/rollout_setup.py:98 start_engine"
LOADING = ["roles/actor.py:71 __init__", "transformers/modeling_utils.py:410 from_pretrained", "torch/serial.py:3 f"]


def busy(*frames: str) -> Status:
    return Status(1, "construct", 1.0, ["cluster/ranks/worker.py:147 _watched", *frames])


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        (None, "", "starting its process"),
        (Status(1, None, 1.0, []), SHARDS, "starting its process"),
        (busy(*LOADING), "", "loading weights"),
        (busy(*LOADING), SHARDS, "loading 3/9 shards"),
        (busy(*LOADING), SHARDS.replace("3/9", "9/9"), "loading weights"),
        (busy(*LOADING), "Loading weights:  50%|█  | 10/21 [00:00<?, ?it/s]", "loading weights 10/21"),
        (busy(ENGINE), VLLM, "loading 1/4 shards"),
        (busy(ENGINE, "worker/gpu.py:3 profile_run"), f"{VLLM}(pid=3) INFO\n", "measuring the free memory"),
        (busy(ENGINE), "Capturing CUDA graphs (a):  10%|█  | 7/67 [", "capturing CUDA graphs (a) 7/67"),
        (busy(ENGINE, "_dynamo/convert_frame.py:8 compile"), "", "compiling"),
        (busy("roles/zero.py:8 join", "distributed/c10d.py:8 init_process_group"), "", "meeting its peers"),
        (busy("<frozen importlib._bootstrap>:1204 _gcd_import", "a/b.py:9 <module>"), "", "importing libraries"),
        (busy("somewhere/else.py:1 f"), "no bar: 3/9", "starting"),
    ],
)  # fmt: skip
def test_words_for_what_a_rank_does(status: Status | None, log: str, words: str) -> None:
    assert doing(status, log) == words
