"""Rotary positions of a GGUF file → `rope_parameters`: base, linear or YaRN scaling, Llama 3's factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from roles.errors import ModelError
from roles.model_files.gguf_header import GgufFile

FREQUENCY_FACTORS = "rope_freqs.weight"
"""Tensor with the divisor of each rotary frequency; Llama 3.1 and later have it."""

SCALING = "rope.scaling."
YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
"""GGUF key → key of `rope_parameters`."""

USUAL_VALUES: dict[str, tuple[Any, ...]] = {
    "finetuned": (True, False),
    "attn_factor": (1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_ext_factor": (1.0,),
    "yarn_log_multiplier": (0.0,),
    "alpha": (0.0, 1.0),
}
"""Keys of rotary scaling → values that have no effect."""

LLAMA_3 = ((1.0, 4.0, 8192),)
"""(low frequency factor, high frequency factor, original length) of the published Llama 3 models."""


def rope_parameters(config: PretrainedConfig, file: GgufFile, said: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of `config` changed by the keys `said` and tensors of the file; {} if the file changes
    nothing. ModelError for a setting without a counterpart."""
    now = getattr(config, "rope_parameters", None) or {}
    nested = "full_attention" in now
    plain = now["full_attention"] if nested else now
    wanted = dict(plain)
    for key, value in said.items():
        if key == "rope.freq_base" and "rope_theta" in plain:
            wanted["rope_theta"] = value
        elif key == "rope.dimension_count" and value == _rotated(config, plain):
            continue
        elif not key.startswith(SCALING):
            raise file.lost(f"{file.architecture}.{key}={value!r}")
    wanted |= _scaling(file, {key.removeprefix(SCALING): v for key, v in said.items() if key.startswith(SCALING)})
    if FREQUENCY_FACTORS in file.tensors:
        if wanted.get("rope_type", "default") != "default":
            raise file.lost(f"{FREQUENCY_FACTORS} beside {file.architecture}.{SCALING}type={wanted['rope_type']}")
        wanted |= _llama_3(config, file, wanted)
    changed = {key for key, value in wanted.items() if not _close(plain.get(key), value)}
    if changed and (nested or not plain):
        raise file.lost(f"{file.architecture}.rope… ({', '.join(sorted(changed))})")
    return {"rope_parameters": wanted} if changed else {}


def _rotated(config: PretrainedConfig, plain: Mapping[str, Any]) -> int:
    """Number of dimensions of a head that rotate."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head * plain.get("partial_rotary_factor", 1.0))


def _scaling(file: GgufFile, said: Mapping[str, Any]) -> dict[str, Any]:
    """Scaling by the keys `type`, `factor`, …; without `type` it is linear, as in llama.cpp."""
    kind, factor = said.get("type", "linear" if "factor" in said else "none"), said.get("factor", 1.0)
    known = {"type", "factor", "original_context_length", *(YARN if kind == "yarn" else ())}
    where = f"{file.architecture}.{SCALING}"
    for key, value in said.items():
        if key not in known and value not in USUAL_VALUES.get(key, ()):
            raise file.lost(f"{where}{key}={value!r}")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {}
    if kind not in ("linear", "yarn"):
        raise file.lost(f"{where}type={kind!r}")
    if factor <= 0:
        raise ModelError(f"{file.path} says {where}factor={factor}, which is no factor; fetch it anew")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    length = said.get("original_context_length", file.said.get("context_length"))
    betas = {name: said[key] for key, name in YARN.items() if key in said}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length, **betas}


def _llama_3(config: PretrainedConfig, file: GgufFile, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` that give the file's rotary frequencies.

    Llama 3 divides low frequencies by `factor`, high ones by 1, and mixes between two wavelengths. A file has only the
    divisors, so any parameters that give these divisors are right.
    """
    factors = _read(file, FREQUENCY_FACTORS)
    theta, width = plain["rope_theta"], _rotated(config, plain)
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if len(factors) != len(frequencies):
        raise file.lost(f"{FREQUENCY_FACTORS} of {len(factors)} numbers for {len(frequencies)} frequencies")
    if torch.equal(factors, torch.ones_like(factors)):
        return {}
    for low, high, length in _guesses(factors, 2 * math.pi / frequencies):
        tried = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
        probe = type(config).from_dict({**config.to_dict(), "rope_parameters": {**plain, **tried}})
        made, _ = ROPE_INIT_FUNCTIONS["llama3"](probe, torch.device("cpu"))
        if torch.allclose(made.double(), frequencies / factors, rtol=1e-5, atol=0):
            return tried
    raise file.lost(f"{FREQUENCY_FACTORS}, whose factors are not Llama 3's")


def _guesses(factors: Tensor, wavelengths: Tensor) -> Iterator[tuple[float, float, int]]:
    """Candidates for (low frequency factor, high frequency factor, original length) that give `factors`.

    A mixed frequency's divisor f gives its share s of the undivided one, 1/f = (1 - s)/factor + s; and s is (length /
    wavelength - low) / (high - low): a line in 1 / wavelength.
    """
    yield from LLAMA_3
    most = factors.max()
    mixed = (factors > 1.00001) & (factors < most * 0.99999)
    shares = ((1 / factors - 1 / most) / (1 - 1 / most))[mixed].tolist()
    inverse = (1 / wavelengths)[mixed].tolist()
    for (s, x), (t, y) in itertools.combinations(zip(shares, inverse, strict=True), 2):
        slope = (s - t) / (x - y)  # length / (high - low)
        offset = slope * x - s  # low / (high - low)
        if slope > 0 and offset > 0:
            yield 1.0, 1 + 1 / offset, round(slope / offset)
    if len(shares) == 1:
        yield 1.0, 4.0, round((3 * shares[0] + 1) / inverse[0])
    if not shares:  # all divided wavelengths lie above all undivided ones
        undivided, divided = wavelengths[factors < most], wavelengths[factors == most]
        yield 1.0, 4.0, round(math.sqrt(4 * float(undivided.max()) * float(divided.min()))) if len(undivided) else 1


def _read(file: GgufFile, name: str) -> Tensor:
    """A small tensor of the file, as float64."""
    from gguf import GGUFReader

    (tensor,) = (tensor for tensor in GGUFReader(file.path).tensors if tensor.name == name)
    return torch.tensor(tensor.data.tolist(), dtype=torch.float64).flatten()


def _close(mine: Any, wanted: Any) -> bool:
    if isinstance(mine, int | float) and isinstance(wanted, int | float):
        return math.isclose(mine, wanted, rel_tol=1e-6)
    return bool(mine == wanted)
