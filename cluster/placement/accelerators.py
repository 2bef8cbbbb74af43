"""The cards that a pool may have, with their memory and rates. Pure data.

Rates are those that the makers publish: peaks of dense arithmetic (no sparsity), bandwidths in one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Published memory and rates of one card."""

    memory_gib: float
    """Memory as the driver shows it, in GiB (makers publish GB)."""
    tflops: float
    """Dense bfloat16 matrix products, in 10^12 operations per second."""
    float32_tflops: float
    """Float32 matrix products, in 10^12 operations per second: without tensor cores, since neither the trainer nor vLLM
    allows them to round to TF32."""
    memory_gb_s: float
    """Bandwidth of the card's memory, in 10^9 bytes per second."""
    link_gb_s: float
    """Bandwidth to the other cards of the node (NVLink, else PCIe), in 10^9 bytes per second."""
    host_gb_s: float
    """Bandwidth to the host over PCIe, in 10^9 bytes per second."""
    ray_name: str
    """Ray's `accelerator_type` of the card, which does not name the memory."""

    def operations_per_s(self, dtype: str) -> float:
        """Operations per second of matrix products."""
        return 1e12 * (self.float32_tflops if dtype == "float32" else self.tflops)


# Makers' data sheets: NVIDIA A100, A800, H100, H200, H20, B200, L40S, L4, A10G, RTX 4090 and V100.
# NVLink figures there count both directions; half of each stands here. V100 has no bfloat16; its rate is float16's.
ACCELERATORS = {
    "A100-40GB": Accelerator(39.4, 312, 19.5, 1555, 300, 32, "A100"),
    "A100-80GB": Accelerator(79.2, 312, 19.5, 2039, 300, 32, "A100"),
    "A800-80GB": Accelerator(79.2, 312, 19.5, 2039, 200, 32, "A800"),
    "H100-80GB": Accelerator(79.6, 989, 67, 3350, 450, 64, "H100"),
    "H800-80GB": Accelerator(79.6, 989, 67, 3350, 200, 64, "H800"),
    "H200-141GB": Accelerator(139.8, 989, 67, 4800, 450, 64, "H200"),
    "H20-96GB": Accelerator(95.6, 148, 44, 4000, 450, 64, "H20"),
    "B200-180GB": Accelerator(178.4, 2250, 75, 8000, 900, 64, "B200"),
    "L40S-48GB": Accelerator(44.5, 362, 91.6, 864, 32, 32, "L40S"),
    "L4-24GB": Accelerator(22.5, 121, 30.3, 300, 32, 32, "L4"),
    "A10G-24GB": Accelerator(22.1, 70, 35, 600, 32, 32, "A10G"),
    "RTX4090-24GB": Accelerator(23.6, 165, 82.6, 1008, 32, 32, "GeForce-RTX-4090"),
    "V100-32GB": Accelerator(31.7, 125, 15.7, 900, 150, 16, "V100"),
}
"""Name → rates of the card."""


def named_by_ray(ray_name: str) -> list[str]:
    """The cards to which Ray gives this name; none if the table has none."""
    return [name for name, card in ACCELERATORS.items() if card.ray_name == ray_name]


def card_called(device_name: str) -> Accelerator | None:
    """The card that the driver calls `device_name`, such as `NVIDIA H100 80GB HBM3`; None if it is not in the table."""
    name = device_name.replace(" ", "-")
    return next((card for card in ACCELERATORS.values() if re.search(rf"\b{card.ray_name}\b", name)), None)


UNKNOWN = "A100-80GB"
"""Card whose rates are used for a pool that names no card."""
