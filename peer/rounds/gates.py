"""What a contribution must be before it counts. The same checks on send and on receive.

Reasons are the words of ``waggle_refusals_total``: shape, malformed, non-finite, norm, weight, deadline, gone, run,
replay, digest, benched, stranger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from swarm.identity import PeerId


def check_shape(values: torch.Tensor, parameters: int) -> str:
    """The reason to refuse ``values``, or "" when they are float32 [parameters] on the CPU."""
    fits = values.shape == (parameters,) and values.dtype == torch.float32 and values.device.type == "cpu"
    return "" if fits else "shape"


def check_values(values: torch.Tensor) -> str:
    """The reason to refuse ``values`` (float32 [n]), or "" when they are finite."""
    # One nan or infinity and the sum is none that is finite. A sum in float32 may also overflow, one in float64 cannot,
    # but takes many times as long.
    finite = math.isfinite(float(values.sum())) or math.isfinite(float(values.sum(dtype=torch.float64)))
    return "" if finite else "non-finite"


def square_norm(values: torch.Tensor) -> float:
    """The squared Euclidean norm in float64."""
    return float(values.double().square().sum())


def check_weight(examples: int, most: int) -> str:
    """The reason to refuse a weight: more work than the manifest lets one peer do before a round."""
    return "" if 0 <= examples <= most else "weight"


def check_norms(square_norms: Mapping[PeerId, float], max_ratio: float) -> dict[PeerId, str]:
    """Refuses contributions much longer than the group's.

    The reference is the *lower* median of the norms, so that one of two peers cannot make itself the measure.
    """
    if len(square_norms) < 2:
        return {}
    ordered = sorted(square_norms.values())
    reference = ordered[(len(ordered) - 1) // 2]
    if reference == 0.0:
        return {}
    bound = reference * max_ratio**2
    return {peer: "norm" for peer, value in square_norms.items() if value > bound}
