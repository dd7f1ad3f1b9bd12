"""MoFO: AdamW in which only the entries with the largest momentum move.

Chen et al., "MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning",
arXiv 2407.20999.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch


class MoFO(torch.optim.Optimizer):
    """Adam's moments everywhere; of each tensor the `fraction` with the largest |m| moves.

        p ← p (1 − lr·wd);   m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) g²
        p ← p − lr/(1−β₁ᵗ) · m·1[|m| ≥ τ] / (√v / √(1−β₂ᵗ) + eps),   τ the k-th largest |m|

    k = ⌊fraction · entries⌋, at least 1. Tensors of one dimension (biases, norms) move in full.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fraction: float = 0.1,
    ) -> None:
        """Raises ValueError where the fraction is not above 0 and at most 1."""
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction that moves is {fraction}, not above 0 and at most 1")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "fraction": fraction,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the parameters once; `closure` gives gradients and loss anew, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, self.state[parameter], group)
        return loss


def _move(parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    gradient = parameter.grad
    if gradient is None:
        return
    if not state:
        state["step"] = 0
        state["m"] = torch.zeros_like(parameter)
        state["v"] = torch.zeros_like(parameter)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    m, v = state["m"], state["v"]
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    scale = v.sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
    moving = m if parameter.ndim < 2 else _filtered(m, group["fraction"])
    parameter.addcdiv_(moving, scale, value=-group["lr"] / (1 - beta1 ** state["step"]))


def _filtered(m: torch.Tensor, fraction: float) -> torch.Tensor:
    """The momentum with all but its largest entries at 0."""
    size = m.abs()
    k = max(1, int(fraction * m.numel()))
    threshold = size.flatten().topk(k, sorted=False).values.min()
    return m * (size >= threshold)
