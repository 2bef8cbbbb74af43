"""Cards that a pool may have. Pure data; read by `cluster.groups`, `cluster.plan` and `orchestrator.planning`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One card."""

    memory_gib: float
    """As the driver shows it, GiB; makers say GB."""
    ray_name: str
    """Ray's `accelerator_type`, which leaves the memory out."""


ACCELERATORS = {
    "A100-40GB": Accelerator(39.4, "A100"),
    "A100-80GB": Accelerator(79.2, "A100"),
    "A800-80GB": Accelerator(79.2, "A800"),
    "H100-80GB": Accelerator(79.6, "H100"),
    "H800-80GB": Accelerator(79.6, "H800"),
    "H200-141GB": Accelerator(139.8, "H200"),
    "H20-96GB": Accelerator(95.6, "H20"),
    "B200-180GB": Accelerator(178.4, "B200"),
    "L40S-48GB": Accelerator(44.5, "L40S"),
    "L4-24GB": Accelerator(22.5, "L4"),
    "A10G-24GB": Accelerator(22.1, "A10G"),
    "RTX4090-24GB": Accelerator(23.6, "GeForce-RTX-4090"),
    "V100-32GB": Accelerator(31.7, "V100"),
}
"""Name → card."""
