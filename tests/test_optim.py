"""Decay groups, the schedule and the moving average."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_run
import torch
from torch import nn

from minivl.errors import InputError
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.grid import GridConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train.optim import Ema, decay_groups, freeze_encoder, is_frozen, make_optimizer, schedule


def names(model: nn.Module, decay: float = 0.3) -> tuple[set[str], set[str]]:
    """Names of the (decaying, other) parameters, each parameter being in one group once."""
    groups = decay_groups(model, decay)
    listed = [name for group in groups for name in group["names"]]
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(listed) == sorted(trained)
    assert len(set(parameters)) == len(parameters) and parameters == [id(trained[name]) for name in listed]
    assert {group["weight_decay"] for group in groups} <= {decay, 0.0}
    found = ({name for group in groups if group["weight_decay"] == which for name in group["names"]}
             for which in (decay, 0.0))
    return next(found), next(found)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_only_matrices_decay(tied: bool, positions: str) -> None:
    decaying, others = names(tiny_run.captioner(tied=tied, positions=positions))
    assert "encoder.cls_token" in others and "encoder.pos_embed" in others
    assert "decoder.embed.weight" in others
    assert ("decoder.pos_embed" in others) == (positions == "learned")
    assert all(name in others for name in decaying | others if name.endswith("bias") or "norm" in name)
    assert all(name in decaying for name in decaying | others
               if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "patch_embed.proj.weight")))
    assert "proj.weight" in decaying and "encoder.patch_embed.proj.weight" in decaying
    assert ("decoder.head.weight" in decaying) == (not tied)


def test_tied_by_sharing_one_parameter_is_a_table() -> None:
    class Tied(nn.Module):
        def __init__(self, head_first: bool) -> None:
            super().__init__()
            if head_first:
                self.head = nn.Linear(6, 9, bias=False)
            self.table = nn.Embedding(9, 6)
            if not head_first:
                self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.table.weight
            self.other = nn.Linear(6, 6)

    for head_first in (True, False):
        decaying, others = names(Tied(head_first))
        assert decaying == {"other.weight"} and len(others) == 2


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny_run.captioner()
    model.encoder.requires_grad_(False)
    decaying, others = names(model)
    assert not any(name.startswith("encoder.") for name in decaying | others)
    assert "proj.weight" in decaying


def test_decay_is_felt_by_decaying_parameters_alone() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig((8, 8), (4, 4), 8, 1, 2, 12, num_classes=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        matrix = name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "head.weight"))
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5 if matrix else 1))


def test_a_model_without_matrices_has_one_group() -> None:
    assert names(nn.LayerNorm(4)) == (set(), {"weight", "bias"})


def test_warmup_and_cosine_values() -> None:
    total, warmup = 110, 10
    assert [schedule("cosine", step, total, warmup) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule("cosine", 10, total, warmup) == 1.0
    assert schedule("cosine", 35, total, warmup) == pytest.approx(0.5 + math.sqrt(0.125))  # a quarter: cos(pi/4)
    assert schedule("cosine", 60, total, warmup) == pytest.approx(0.5)
    assert schedule("cosine", 109, total, warmup) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert schedule("cosine", 110, total, warmup) == pytest.approx(0.0)
    assert schedule("cosine", 500, total, warmup) == pytest.approx(0.0)  # never up again


def test_schedule_without_warmup_and_with_nothing_else() -> None:
    assert schedule("cosine", 0, 7, 0) == 1.0
    assert [schedule("cosine", step, 4, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [schedule("cosine", step, 2, 8) for step in range(2)] == [0.125, 0.25]
    values = [schedule("cosine", step, 50, 5) for step in range(50)]
    assert values[5:] == sorted(values[5:], reverse=True) and min(values) > 0


def test_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema = Ema(model, 0.5)
    assert set(ema.shadow) == {"weight"}
    expected = model.weight.detach().double().clone()
    for update in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(ema.shadow["weight"].double(), expected, rtol=0, atol=1e-6)
    assert ema.updates == 12 and 13 / 22 > 0.5 > 1 / 10  # both branches of the minimum were seen


def test_average_follows_running_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.register_buffer("constant", torch.ones(2), persistent=False)  # is in no weight file
    ema = Ema(model, 0.5)
    assert set(ema.shadow) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    mean, variance = torch.zeros(4), torch.ones(4)
    for update in range(12):
        model(torch.randn(5, 3, 4, 4) * (update + 1))
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        mean = decay * mean + (1 - decay) * model[1].running_mean
        variance = decay * variance + (1 - decay) * model[1].running_var
    torch.testing.assert_close(ema.shadow["1.running_mean"], mean)
    torch.testing.assert_close(ema.shadow["1.running_var"], variance)
    present = model[1].running_mean.clone()
    ema.swap(model)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].num_batches_tracked == 12 and not torch.allclose(present, mean)
    ema.swap(model)
    assert torch.equal(model[1].running_mean, present)


def test_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    assert [is_frozen(module) for module in (model, *model)] == [False, True, False, False]


def test_average_is_no_view_of_the_weights() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.9)
    held = ema.shadow["weight"].clone()
    with torch.no_grad():
        model.weight.mul_(5)
    assert torch.equal(ema.shadow["weight"], held)


def test_swap_there_and_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    weight, average = model.weight.detach().clone(), ema.shadow["weight"].clone()
    assert not torch.equal(weight, average)
    pointer = model.weight.data_ptr()
    ema.swap(model)
    assert torch.equal(model.weight, average) and torch.equal(ema.shadow["weight"], weight)
    ema.swap(model)
    assert torch.equal(model.weight, weight) and torch.equal(ema.shadow["weight"], average)
    assert model.weight.data_ptr() == pointer  # in place: the optimiser still holds these tensors


@pytest.mark.parametrize("fields", [{}, {"dist_token": True, "registers": 2, "pre_norm": True},
                                    {"pool": "mean", "class_token": False, "stem": (4, 6), "layer_scale": True}])
def test_rates_by_layer(fields: dict[str, Any]) -> None:
    """Three blocks and a decay of 1/2: 1/16 before them, 1/8, 1/4, 1/2, and 1 from the last norm on."""
    model = ViT(ViTConfig((8, 8), (4, 4), 8, 3, 2, 12, num_classes=3, **fields))
    for weight_decay in (0.3, 0.0):
        groups = decay_groups(model, weight_decay, 0.5)
        listed = [name for group in groups for name in group["names"]]
        assert sorted(listed) == sorted(dict(model.named_parameters())) and len(set(listed)) == len(listed)
        for group in groups:
            for name, parameter in zip(group["names"], group["params"]):
                assert parameter is model.get_parameter(name)
                top, _, rest = name.partition(".")
                wanted = {"blocks": 2.0 ** -(3 - int(rest.partition(".")[0])) if top == "blocks" else 0,
                          "head": 1, "head_dist": 1, "norm": 1, "fc_norm": 1}.get(top, 1 / 16)
                assert group["scale"] == wanted, name
                assert group["weight_decay"] in (0, weight_decay)
    assert {group["scale"] for group in decay_groups(model, 0.0)} == {1.0}
    assert len(decay_groups(model, 0.0)) == 2


def two_towers(kind: str) -> tuple[nn.Module, str]:
    """A captioner or pair over a ViT of three blocks, every kind of part in it, and what its encoder's names begin
    with."""
    fields: dict[str, Any] = {"dist_token": True, "registers": 2, "pre_norm": True}
    tokenizer = Tokenizer.train(["a red dog runs"])
    if kind == "captioner":
        decoder = DecoderConfig(tokenizer.vocab_size, 12, 2, 2, 16, pad_id=tokenizer.pad_id)
        return Captioner(CaptionerConfig(ViTConfig((8, 8), (4, 4), 8, 3, 2, 12, num_classes=0, **fields),
                                         decoder)), "encoder."
    text = TextConfig(tokenizer.vocab_size, 12, 4, 2, 16, 6, bos_id=tokenizer.bos_id, eot_id=tokenizer.eos_id)
    return CLIP(CLIPConfig(ViTConfig((8, 8), (4, 4), 8, 3, 2, 12, num_classes=6, **fields), text)), "visual."


BEFORE = {"patch_embed", "norm_pre", "cls_token", "dist_token", "reg_token", "pos_embed"}


@pytest.mark.parametrize("kind", ["captioner", "pair"])
def test_rates_within_the_encoder(kind: str) -> None:
    """A fifth of the rate there, times 1/2 a layer; the decoder's blocks and the pair's projection learn at 1."""
    model, prefix = two_towers(kind)
    seen = {}
    for group in decay_groups(model, 0.3, 0.5, 0.2):
        for name, parameter in zip(group["names"], group["params"]):
            assert parameter is model.get_parameter(name) and name not in seen
            seen[name] = group["scale"]
    assert seen.keys() == dict(model.named_parameters()).keys()
    for name, scale in seen.items():
        top, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or top in ("head", "head_dist"):
            wanted = 1.0
        elif top == "blocks":
            wanted = 0.2 * {0: 1 / 8, 1: 1 / 4, 2: 1 / 2}[int(rest.partition(".")[0])]
        else:
            assert top in BEFORE | {"norm"}, name
            wanted = 0.2 * (1 / 16 if top in BEFORE else 1.0)
        assert scale == pytest.approx(wanted, rel=1e-12), name
    assert {group["scale"] for group in decay_groups(model, 0.0, encoder_scale=3.0)} == {1.0, 3.0}


@pytest.mark.parametrize("kind", ["captioner", "pair", "vit"])
@pytest.mark.parametrize("unfreeze", [0, 1, 2, 3])
def test_the_last_blocks_alone_are_trained(kind: str, unfreeze: int) -> None:
    model, prefix = two_towers("pair" if kind == "vit" else kind)
    if kind == "vit":
        model, prefix = model.visual, ""  # type: ignore[assignment]
    freeze_encoder(model, unfreeze)
    for name, parameter in model.named_parameters():
        top, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or top in ("head", "head_dist"):
            wanted = True
        elif top == "blocks":
            wanted = int(rest.partition(".")[0]) >= 3 - unfreeze
        else:
            wanted = top == "norm" and unfreeze > 0
        assert parameter.requires_grad == wanted, name
    with pytest.raises(InputError, match="unfreeze=4: the encoder has 3 blocks"):
        freeze_encoder(model, 4)


def test_models_without_such_an_encoder() -> None:
    for factors in ((0.5, 1.0), (1.0, 0.5)):
        with pytest.raises(InputError, match="for the encoder of pictures; this model has none"):
            decay_groups(nn.Linear(3, 2), 0.0, *factors)
    grid = Captioner(CaptionerConfig(GridConfig(8, 1, 2, 8, layers=(1, 1, 1, 1)), DecoderConfig(9, 8, 1, 2, 8, 6)))
    with pytest.raises(InputError, match="layer_decay=0.5: this encoder is no ViT"):
        decay_groups(grid, 0.0, 0.5)
    scales = {name: group["scale"] for group in decay_groups(grid, 0.0, encoder_scale=0.25) for name in group["names"]}
    assert {scale for name, scale in scales.items() if name.startswith("encoder.")} == {0.25}
    assert {scale for name, scale in scales.items() if not name.startswith("encoder.")} == {1.0}
    for model in (grid, nn.Linear(3, 2)):
        with pytest.raises(InputError, match="no ViT as its encoder"):
            freeze_encoder(model)


def test_constant_and_step_schedules() -> None:
    assert [schedule("constant", step, 9, 2) for step in range(4)] == [0.5, 1, 1, 1]
    assert [schedule("step", step, 9, 0, factor=0.5, period=3) for step in range(9)] == [
        1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [schedule("step", step, 9, 4, factor=0.1, period=3) for step in range(7)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 0.1, 0.1, 0.01])


def test_optimisers_by_name() -> None:
    model = nn.Linear(3, 2)
    sgd = make_optimizer("sgd", decay_groups(model, 0.1), momentum=0.8)
    assert isinstance(sgd, torch.optim.SGD) and {group["momentum"] for group in sgd.param_groups} == {0.8}
    assert isinstance(make_optimizer("adamw", decay_groups(model, 0.1)), torch.optim.AdamW)
    with pytest.raises(InputError, match="optimizer='lion': give one of adamw, sgd"):
        make_optimizer("lion", decay_groups(model, 0.1))
