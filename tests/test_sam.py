"""Steps of sharpness-aware minimisation beside steps written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivl.errors import InputError
from minivl.models.vit import ViT, ViTConfig
from minivl.train.distributed import ALONE
from minivl.train.optim import decay_groups, make_optimizer
from minivl.train.plan import Plan
from minivl.train.run import Run
from minivl.train.sam import Sam
from minivl.train.step import Stepper

RATE, STEPS = 0.01, 3
LABELS = torch.tensor([0, 3, 1, 4, 2, 0])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def vit(**changes: Any) -> ViT:
    """In float64, so that a step and the same by hand differ by nothing but the order of sums."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"dist_token": True, **changes}
    model = ViT(ViTConfig((16, 16), (8, 8), 16, 2, 2, 24, num_classes=5, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double()


class Task:
    """Batches are (images, labels), in so many micro-batches as equal in size as can be."""

    steps = STEPS

    def __init__(self, micro: int) -> None:
        self.micro = micro

    def parts(self, batch: tuple[Tensor, Tensor]) -> list[tuple[Any, float]]:
        pairs = zip(batch[0].tensor_split(self.micro), batch[1].tensor_split(self.micro))
        return [(pair, len(pair[1]) / len(batch[1])) for pair in pairs]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of 6, 5 and 6 pictures."""
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(count, 3, 16, 16, generator=draw, dtype=torch.float64), LABELS[:count]) for count in (6, 5, 6)]


def trained(model: ViT, plan: Plan, micro: int = 1, scale: float = 1.0) -> list[float]:
    """Train by the engine's own steps; the loss of each. With a `scale` losses are scaled as for fp16."""
    task: Any = Task(micro)
    optimizer = make_optimizer(plan.optimizer, decay_groups(model, plan.weight_decay), momentum=plan.momentum)
    stepper = Stepper(model, task, plan, optimizer, ALONE)
    if scale != 1:
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    model.train()
    found = []
    for step, batch in enumerate(batches()):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        found.append(stepper.gradients(batch, RATE, step, Run(Path("nowhere"))))
        assert all(map(torch.equal, before, model.parameters()))  # put back, bit for bit
        stepper.step()
    return found


def by_hand(model: ViT, plan: Plan) -> list[float]:
    """The same from the papers' formulas, on whole batches."""
    named = dict(model.named_parameters())
    matrices = {f"{name}.weight" for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))}
    first = {name: torch.zeros_like(one) for name, one in named.items()}
    second = {name: torch.zeros_like(one) for name, one in named.items()}
    found = []

    def gradient(images: Tensor, labels: Tensor, weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        loss = F.cross_entropy(torch.func.functional_call(model, weights, images), labels)
        return loss.item(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))

    def length(tensors: dict[str, Tensor]) -> float:
        return torch.cat([one.flatten() for one in tensors.values()]).norm().item()

    for step, (images, labels) in enumerate(batches(), 1):
        loss, slope = gradient(images, labels, named)
        found.append(loss)
        size = {name: one.detach().abs() if plan.sam_adaptive else torch.ones_like(one) for name, one in named.items()}
        away = plan.sam / length({name: size[name] * one for name, one in slope.items()})
        there = {name: (one.detach() + away * size[name] ** 2 * slope[name]).requires_grad_()
                 for name, one in named.items()}
        _, slope = gradient(images, labels, there)
        factor = min(1.0, plan.clip / (length(slope) + 1e-6))  # torch adds that
        assert factor < 0.9  # clipping is felt, by the second gradient
        for name, one in named.items():
            decay, grad = plan.weight_decay if name in matrices else 0.0, slope[name] * factor
            if plan.optimizer == "sgd":
                first[name] = plan.momentum * first[name] + grad + decay * one.detach()
                one.data -= RATE * first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.98 * second[name] + 0.02 * grad ** 2
                one.data *= 1 - RATE * decay
                one.data -= RATE * (first[name] / (1 - 0.9 ** step)) / (
                    (second[name] / (1 - 0.98 ** step)).sqrt() + 1e-8)
    return found


def plan_of(optimizer: str, adaptive: bool) -> Plan:
    return Plan(epochs=1, lr=RATE, optimizer=optimizer, weight_decay=0.1, clip=0.3, sam=2.0 if adaptive else 0.2,
                sam_adaptive=adaptive)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_those_by_hand(optimizer: str, adaptive: bool) -> None:
    """For any micro-batches and any scale of losses; and they are not those of another radius or variant."""
    plan = plan_of(optimizer, adaptive)
    wanted, start = vit(), vit()
    losses = by_hand(wanted, plan)
    # the keys' biases have gradients of rounding alone, which AdamW divides by their size
    compared = [name for name, _ in start.named_parameters() if not name.endswith("k_proj.bias")]
    for micro, scale in ((1, 1.0), (2, 1.0), (3, 2.0 ** 12), (1, 2.0 ** -9)):
        model = vit()
        assert trained(model, plan, micro, scale) == pytest.approx(losses, abs=1e-9)
        worst = max((model.get_parameter(name) - wanted.get_parameter(name)).abs().max() for name in compared)
        moved = max((start.get_parameter(name) - wanted.get_parameter(name)).abs().max() for name in compared)
        assert worst < 1e-7 and moved > 1e-3, (micro, scale, worst)
    for other in (plan_of(optimizer, not adaptive), Plan(1, RATE, 0.1, clip=0.3, optimizer=optimizer)):
        model = vit()
        trained(model, other)
        assert (model.head.weight - wanted.head.weight).abs().max() > 1e-4


def test_both_gradients_drop_the_same() -> None:
    """With next to no radius, SAM's gradient is the plain one, dropout or not."""
    found = []
    for sam in (0.0, 1e-9):
        model = vit(dropout=0.3, drop_path=0.4).train()
        task: Any = Task(2)
        plan = replace(plan_of("sgd", False), sam=sam)
        one = Stepper(model, task, plan, make_optimizer("sgd", decay_groups(model, 0.1)), ALONE)
        one.gradients(batches()[0], RATE, 3, Run(Path("nowhere")))
        found.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert 0 < (found[0] - found[1]).abs().max() < 1e-7 and found[0].norm() == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_statistics_move_once_a_step(micro: int) -> None:
    """Those of batch norms (once a micro-batch): at the weights themselves, not where SAM looks around."""
    plain, model = (vit(stem=(6, 8, 10), dist_token=False) for _ in range(2))
    model.train()
    task: Any = Task(micro)
    stepper = Stepper(model, task, plan_of("sgd", False), make_optimizer("sgd", decay_groups(model, 0.1)), ALONE)
    batch = batches()[0]
    stepper.gradients(batch, RATE, 0, Run(Path("nowhere")))
    moved = dict(model.named_buffers())
    plain.train()
    for images in batch[0].tensor_split(micro):
        plain(images)
    assert moved.keys() == dict(plain.named_buffers()).keys() and len(moved) == 9
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, moved[name]), name
    assert model.patch_embed.stem[1].num_batches_tracked == micro


def test_the_radius_is_that_of_all_weights_together() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (2,))]
    held = [one.detach().clone() for one in weights]
    for one in weights[:2]:
        one.grad = torch.randn(one.shape) * 1e4
    for adaptive in (False, True):
        sam = Sam(0.25, adaptive)
        sam.perturb(weights)
        moves = [(one - kept) / (kept.abs() if adaptive else 1) for one, kept in zip(weights, held)]
        assert torch.cat([one.flatten() for one in moves]).norm().item() == pytest.approx(0.25, abs=1e-5)
        assert torch.equal(weights[2], held[2])  # without a gradient
        sam.restore()
        assert all(map(torch.equal, weights, held))
        sam.restore()
    for rho in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="give a positive radius"):
            Sam(rho)


def test_a_batch_without_any_gradient_moves_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    sam = Sam(0.1)
    for gradient in (None, torch.zeros(3)):
        weight.grad = gradient
        sam.perturb([weight])
        assert torch.equal(weight, torch.ones(3))
        sam.restore()
