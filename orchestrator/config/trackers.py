"""Where a run's metrics go besides its own files: the entries of `report.trackers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class TrackerConfig(Section):
    """What all trackers have."""

    name: str | None = None
    """The run's name there; null: the last folder of `run_dir`."""
    aliases: bool = False
    """Send the metrics also under the names that TRL and OpenRLHF give them, such as `ppo/mean_scores`."""


class TensorboardConfig(TrackerConfig):
    """TensorBoard event files in `run_dir/tensorboard`; as `report.tensorboard` does, here with aliases."""

    type: Literal["tensorboard"] = "tensorboard"
    """TensorBoard."""


class WandbConfig(TrackerConfig):
    """Weights & Biases. The key comes from `wandb login` or WANDB_API_KEY."""

    type: Literal["wandb"]
    """Weights & Biases."""
    project: str = "tetrarch"
    """The project; it is made if it is missing."""
    entity: str | None = None
    """User or team; null: the default one of the key."""
    group: str | None = None
    """Runs of one group are shown together."""
    tags: list[str] = Field(default_factory=list)
    """Words to find the run by."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into `run_dir/wandb`, for `wandb sync`."""


class MlflowConfig(TrackerConfig):
    """MLflow. Credentials come from its own variables (MLFLOW_TRACKING_TOKEN, …)."""

    type: Literal["mlflow"]
    """MLflow."""
    uri: str | None = None
    """Tracking server or store, such as `http://127.0.0.1:5000` or `sqlite:///runs/mlflow.db`; null:
    MLFLOW_TRACKING_URI, or MLflow's own default."""
    experiment: str = "tetrarch"
    """The experiment; it is made if it is missing."""


class SwanlabConfig(TrackerConfig):
    """SwanLab. The key comes from `swanlab login` or SWANLAB_API_KEY."""

    type: Literal["swanlab"]
    """SwanLab."""
    project: str = "tetrarch"
    """The project; it is made if it is missing."""
    workspace: str | None = None
    """User or organisation; null: that of the key."""
    mode: Literal["online", "local", "offline"] = "online"
    """`local` and `offline` write into `run_dir/swanlog`; only an online run goes on as the same after `--resume`."""


class TrackioConfig(TrackerConfig):
    """trackio: a local store (TRACKIO_DIR), or a Space of the Hugging Face hub with the token of `hf auth login`."""

    type: Literal["trackio"]
    """trackio."""
    project: str = "tetrarch"
    """The project; it is made if it is missing."""
    space: str | None = None
    """Space to send to, `owner/name`; null: the local store."""


AnyTrackerConfig = Annotated[
    TensorboardConfig | WandbConfig | MlflowConfig | SwanlabConfig | TrackioConfig, Field(discriminator="type")
]
