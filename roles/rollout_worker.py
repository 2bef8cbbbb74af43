"""What our code adds to vLLM's workers: vLLM mixes `WeightReceiver` into its worker class (`worker_extension_cls`).

Importing this module registers the `gloo` weight-transfer backend, so that child processes of vLLM find it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from roles.digest import Digest
from roles.gloo_transfer import register

register()


class WeightReceiver:
    """Methods that `RolloutEngine` calls on each of its workers with `collective_rpc`."""

    weight_transfer_engine: Any  # vLLM's worker has it

    def watch_weights(self) -> None:
        """From now on, count what any backend hands to the model's loader into a digest."""
        model = self.weight_transfer_engine.model
        digest = Digest()
        load = type(model).load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
            return load(model, _counted(weights, digest), *args, **kwargs)

        model.load_weights = load_weights
        self._weights_digest = digest

    def weights_digest(self) -> str:
        """The digest since `watch_weights`; the watching ends."""
        del self.weight_transfer_engine.model.load_weights
        return self._weights_digest.hexdigest()


def _counted(weights: Iterable[tuple[str, Tensor]], digest: Digest) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in weights:
        digest.add(name, tensor)
        yield name, tensor
