"""The sizes of a decoder that memory and time depend on. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A decoder's numbers, such as those of Qwen3-30B-A3B:

    parameters=30_532_122_624, layers=48, experts=128, experts_per_token=8, expert=4_718_592, sparse_layers=48
    (active_parameters == 3_353_032_704)
    """

    parameters: int
    """All parameters; tied ones count once."""
    layer: int
    """Parameters of one decoder layer (the largest, if they differ)."""
    embedding: int
    """Parameters of the input embedding; a head that is not tied has as many again."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the gated MLP; for a mixture of experts, the summed width of the experts that one token is sent to."""
    heads: int
    kv_heads: int
    head_width: int
    """Width of a key in one head; if keys and values differ (latent attention), the mean of their widths."""
    vocabulary: int
    """Logits per token; 0 for a model with a value head."""
    decoder: int = 0
    """Parameters of all decoder layers; 0: each layer has `layer`."""
    experts: int = 0
    """Routed experts of one layer that is a mixture of experts."""
    experts_per_token: int = 0
    """Number of experts that one token is sent to."""
    expert: int = 0
    """Parameters of one routed expert in one layer."""
    sparse_layers: int = 0
    """Number of layers that are a mixture of experts."""
    latent: int = 0
    """Width of the compressed keys and values that latent attention caches per token and layer, for all heads
    together; 0: keys and values are cached per head."""
    whole_logits: bool = False
    """Whether the logits of all scored tokens are held at once, because they are scaled or capped after the head."""
    fusible: bool = False
    """Whether there are fused kernels for its layers."""
    estimated: bool = False
    """Whether only the number of parameters is known, and the other sizes are estimated from it."""

    @property
    def kv_width(self) -> int:
        """Width of the keys of one token in one layer, over all heads."""
        return self.kv_heads * self.head_width

    @property
    def active_in_layers(self) -> int:
        """Parameters of the decoder layers that one token uses: all except the experts that it is not sent to."""
        idle = self.experts - self.experts_per_token
        return (self.decoder or self.layers * self.layer) - self.sparse_layers * idle * self.expert

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: all except the experts that it is not sent to."""
        return self.parameters - self.sparse_layers * (self.experts - self.experts_per_token) * self.expert

    def read_parameters(self, tokens: float) -> float:
        """Parameters that one pass over `tokens` tokens reads: all, but of the experts only those that a token is sent
        to.

        Of E experts, n tokens that are each sent to k of them, all equally likely, reach E (1 - (1 - k/E)^n).
        """
        if not self.sparse_layers:
            return float(self.parameters)
        missed = self.experts * (1 - self.experts_per_token / self.experts) ** tokens
        return self.parameters - self.sparse_layers * missed * self.expert

    def splits(self, parallel: int) -> bool:
        """Whether vLLM can split the model's attention heads over `parallel` processes."""
        return splits(self.heads, self.kv_heads, parallel)


def splits(heads: int, kv_heads: int, parallel: int) -> bool:
    """Whether attention heads can be split evenly over `parallel` processes; heads of keys and values may be copied."""
    return heads % parallel == 0 and (kv_heads % parallel == 0 or parallel % kv_heads == 0)
