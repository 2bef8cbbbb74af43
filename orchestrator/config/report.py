"""What a run writes beside `metrics.jsonl`: the section `report`."""

from __future__ import annotations

from roles.config.section import Section


class ReportConfig(Section):
    """Which reports a run writes into its `run_dir`."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    html: bool = True
    """Write one self-contained `report.html`."""
