"""How the learning rate follows the global batch.

    SGD       lr x k, warmed up over the first 5 epochs (Goyal et al. 2017, arXiv:1706.02677: ImageNet up to a batch of 8,192 without loss)
    Adam(W)   lr x sqrt(k), with 1 - beta_1 and 1 - beta_2 times k, epsilon over sqrt(k) (Malladi et al. 2022, arXiv:2205.10287)

for a batch k times as large. Both end where the gradient's noise does: beyond the critical batch (McCandlish et al. 2018, arXiv:1812.06162)
more samples a step no longer save steps.
"""

from __future__ import annotations

import math

from gpualloc.advice.records import LearningRateRule

_LINEAR_UP_TO = 8192  # samples a step, Goyal et al. 2017
_BETAS = (0.9, 0.999)  # torch's defaults


def learning_rate_rule(optimizer: str, *, from_batch_size: int, to_batch_size: int) -> LearningRateRule | None:
    """The rule for a global batch that grows or shrinks; None where it stays.

    Args:
        optimizer: as in gpualloc.workloads.
    """
    if from_batch_size == to_batch_size:
        return None
    ratio = to_batch_size / from_batch_size
    batch = f"global batch {from_batch_size:,} -> {to_batch_size:,}"
    if optimizer == "sgd":
        factor: float | None = ratio
        text = f"{batch}: learning rate x {ratio:g}, warmed up over the first 5 epochs (linear scaling rule)"
        if to_batch_size > _LINEAR_UP_TO:
            text += f"; shown up to {_LINEAR_UP_TO:,} samples a step, beyond it check the accuracy"
        source = "Goyal et al. 2017, arXiv:1706.02677"
    elif optimizer.startswith("adam"):
        factor = math.sqrt(ratio)
        text = f"{batch}: learning rate x {factor:.3g} (square-root scaling rule)"
        betas = [1 - ratio * (1 - beta) for beta in _BETAS]
        if min(betas) > 0:
            text += f", betas {_BETAS[0]:g}, {_BETAS[1]:g} -> {betas[0]:.3g}, {betas[1]:.4g}"
        source = "Malladi et al. 2022, arXiv:2205.10287"
    else:
        factor = None
        text = f"{batch}: no scaling rule is known for {optimizer}; tune the learning rate again"
        source = ""
    return LearningRateRule(from_batch_size=from_batch_size, to_batch_size=to_batch_size, factor=factor, text=text, source=source)
