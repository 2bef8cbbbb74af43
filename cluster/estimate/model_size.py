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
    """All, tied ones once."""
    layer: int
    """Parameters of one decoder layer; of the largest, if they differ."""
    embedding: int
    """Parameters of the input embedding (and of the head, if it is not tied: as many again)."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the gated MLP; of a mixture of experts, of all those together that one token goes through."""
    heads: int
    kv_heads: int
    head_width: int
    """Numbers of a key in one head; where keys and values differ in width (latent attention), their mean."""
    vocabulary: int
    """Logits a token; 0 for a model with a value head."""
    decoder: int = 0
    """Parameters of all decoder layers; 0: each has `layer`."""
    experts: int = 0
    """Routed experts of one layer that is a mixture of experts."""
    experts_per_token: int = 0
    """How many of them one token is sent to."""
    expert: int = 0
    """Parameters of one routed expert in one layer."""
    sparse_layers: int = 0
    """Layers that are a mixture of experts."""
    latent: int = 0
    """Width of the compressed keys and values that latent attention caches for a token in one layer, for all heads
    together; 0: keys and values are cached by head."""
    whole_logits: bool = False
    """Whether the logits of all scored tokens are held at once, because they are scaled or capped after the head."""
    estimated: bool = False
    """Whether only the number of parameters is sure, and the rest is guessed from it."""

    @property
    def kv_width(self) -> int:
        """Numbers of keys of a token in one layer."""
        return self.kv_heads * self.head_width

    @property
    def active_in_layers(self) -> int:
        """Parameters of the decoder layers that one token is multiplied with: all, but for the experts it misses."""
        idle = self.experts - self.experts_per_token
        return (self.decoder or self.layers * self.layer) - self.sparse_layers * idle * self.expert

    @property
    def active_parameters(self) -> int:
        """All parameters but those of the experts that one token misses."""
        return self.parameters - self.sparse_layers * (self.experts - self.experts_per_token) * self.expert

    def read_parameters(self, tokens: float) -> float:
        """How many parameters one pass over so many tokens reads: all, but of the experts only those that are touched.

        Of E experts, n tokens that are each sent to k of them, all equally likely, touch E (1 - (1 - k/E)^n).
        """
        if not self.sparse_layers:
            return float(self.parameters)
        missed = self.experts * (1 - self.experts_per_token / self.experts) ** tokens
        return self.parameters - self.sparse_layers * missed * self.expert

    def splits(self, parallel: int) -> bool:
        """Whether vLLM can spread its heads over so many processes."""
        return splits(self.heads, self.kv_heads, parallel)


def splits(heads: int, kv_heads: int, parallel: int) -> bool:
    """Whether attention heads can be spread over so many processes: evenly, those of keys and values also as copies."""
    return heads % parallel == 0 and (kv_heads % parallel == 0 or parallel % kv_heads == 0)
