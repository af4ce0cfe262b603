"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distributed import whole


class Sam:
    """The two moves of SAM around the second gradient of a step (Foret et al. 2021,
    https://arxiv.org/abs/2010.01412); with `adaptive`, those of ASAM (Kwon et al. 2021,
    https://arxiv.org/abs/2102.11600).

    One step of training is::

        gradients of the batch; sam.perturb(parameters)
        gradients of the batch there; sam.restore(); optimizer.step()

    Args:
        rho: radius of the neighbourhood, in the norm of all weights together.
        adaptive: each weight moves in proportion to its own size.

    Raises:
        InputError: rho is not positive.
    """

    def __init__(self, rho: float, adaptive: bool = False) -> None:
        if not rho > 0:
            raise InputError(f"sam={rho}: give a positive radius, such as 0.05")
        self.rho, self.adaptive = rho, adaptive
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    @torch.no_grad()
    def perturb(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the weights by rho along their gradients; a common factor of all gradients (a loss scale) cancels.

        Args:
            parameters: with the gradients of the whole global batch; those without one stay.
        """
        assert not self._held, "perturbed twice"
        moved = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        # adaptive: the ball is round in units of |w|, so gradients count |w| times in its norm, w^2 in the step
        scaled = [parameter.abs() * gradient if self.adaptive else gradient for parameter, gradient in moved]
        if not scaled:
            return
        norm = torch.stack([whole(torch.linalg.vector_norm(one)) for one in scaled]).norm()
        self._held = [(parameter, parameter.detach().clone()) for parameter, _ in moved]
        for (parameter, _), gradient in zip(moved, scaled):
            step = gradient * (self.rho / (norm.item() + 1e-12))
            parameter.add_(step * parameter.abs() if self.adaptive else step)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit; does nothing where they were not moved."""
        for parameter, held in self._held:
            parameter.copy_(held)
        self._held = []
