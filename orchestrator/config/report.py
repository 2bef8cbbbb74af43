"""What a run writes beside `metrics.jsonl`: the section `report`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.trackers import AnyTrackerConfig
from roles.config.section import Section

TokenColumn = Literal[
    "token_ids", "rollout_logprobs", "old_logprobs", "reference_logprobs", "values", "returns", "advantages"
]
"""What can be kept of every token of a sample."""


class SampleFilesConfig(Section):
    """What the file of a PPO step says of every sample that the step has generated, beside its ids, seed, score, KL,
    lengths, and what became of it."""

    texts: bool = True
    """Prompt, response and conversation."""
    token_columns: list[TokenColumn] = Field(default_factory=list)
    """Columns with a list for each sample. `token_ids` adds the prompt's (`prompt_token_ids`), those after it, and
    which of these the policy generated (`generated`). The others have a number for each token after the prompt, 0 for
    what an environment said: the log-probabilities of vLLM, of the actor before the update and of the reference, and
    the critic's values, the returns and the advantages, as they were trained on (0 in samples that were left out)."""


class ReportConfig(Section):
    """Which reports a run writes into its `run_dir`."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    html: bool = True
    """Write one self-contained `report.html`."""
    sample_every: int = Field(default=5, ge=0)
    """Steps between responses that the terminal shows; 0: none."""
    trace: bool = True
    """Write the timeline of all steps into `trace.json.gz`, for Perfetto and `tetrarch trace`."""
    ray_metrics: bool = True
    """Have Ray export the metrics of each step for Prometheus, with the name of `run_dir` as the label `run`."""
    trackers: list[AnyTrackerConfig] = Field(default_factory=list)
    """Trackers to which metrics, alerts, configuration and report are sent besides. One that fails or hangs is told of
    once, and the run goes on without it."""
    trackers_s: float = Field(default=60.0, gt=0)
    """Seconds for which the end of a run waits for its trackers."""
    samples: SampleFilesConfig | None = SampleFilesConfig()
    """Write all samples of a PPO step into `samples/step-N.parquet`; null: do not."""
