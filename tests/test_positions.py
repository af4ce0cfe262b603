"""Resized position tables against the libraries whose rules they follow, and against the rules' formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import resize_pos_embed
from pytorch_pretrained_vit.utils import resize_positional_embedding_
from scipy.ndimage import zoom
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from transformers import BlipVisionConfig, CLIPVisionConfig, Dinov2Config, ViTConfig
from transformers.models.blip.modeling_blip import BlipVisionEmbeddings
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings

from minivl.errors import InputError
from minivl.nn.positions import RULES, resize_positions

PREFIXES = [0, 1, 2, 5]
FROM_SQUARE = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((7, 7), (5, 12)), ((14, 14), (24, 24)), ((24, 24), (14, 14)),
               ((5, 5), (5, 9)), ((6, 6), (1, 1)), ((1, 1), (3, 2))]
OF_ANY = FROM_SQUARE + [((3, 5), (6, 7)), ((8, 5), (3, 11)), ((4, 9), (4, 3)), ((2, 8), (4, 4)), ((1, 6), (4, 3))]
grids_from_square = pytest.mark.parametrize(("old", "new"), FROM_SQUARE)
grids = pytest.mark.parametrize(("old", "new"), OF_ANY)
prefixes = pytest.mark.parametrize("n_prefix", PREFIXES)


def random_table(grid: tuple[int, int], n_prefix: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(1, n_prefix + grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


def equals(rule: str, old: tuple[int, int], new: tuple[int, int], n_prefix: int, library: Callable[[Tensor], Tensor],
           keeps: int | None = None) -> None:
    """Our resized table is the library's, which is given the last `keeps` (None: all) of the prefix rows."""
    table = random_table(old, n_prefix, width=2 * n_prefix + 3, seed=n_prefix)
    before = table.clone()
    ours = resize_positions(table, old, new, n_prefix=n_prefix, rule=rule)
    assert ours.shape == (1, n_prefix + new[0] * new[1], table.shape[2]) and ours.dtype == torch.float32
    assert torch.equal(table, before) and torch.equal(ours[:, :n_prefix], table[:, :n_prefix])
    if keeps is not None:  # libraries that know of one prefix row only: it is a stranger if we have none
        stranger = torch.full((1, keeps, table.shape[2]), 9.0)
        table, ours = (torch.cat([stranger, x[:, n_prefix:]], 1) for x in (table, ours))
    torch.testing.assert_close(ours, library(table), rtol=0, atol=1e-6)


# -- libraries -------------------------------------------------------------------------------------------------

@grids
@prefixes
def test_timm(old: tuple[int, int], new: tuple[int, int], n_prefix: int) -> None:
    equals("timm", old, new, n_prefix, lambda table: resample_abs_pos_embed(table, list(new), list(old), n_prefix))


@grids_from_square
@prefixes
def test_timms_npz_loader(old: tuple[int, int], new: tuple[int, int], n_prefix: int, tmp_path: Path) -> None:
    def library(table: Tensor) -> Tensor:
        width = table.shape[2]
        model = timm.models.VisionTransformer(
            img_size=(2 * new[0], 2 * new[1]), patch_size=2, embed_dim=width, depth=0, num_heads=1, num_classes=0,
            class_token=n_prefix > 0, reg_tokens=max(n_prefix - 1, 0), global_pool="token" if n_prefix else "avg",
            fc_norm=False)
        arrays = {"embedding/kernel": (2, 2, 3, width), "embedding/bias": (width,), "cls": (1, 1, width),
                  "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,)}
        np.savez(tmp_path / "x.npz", **{name: np.zeros(shape, np.float32) for name, shape in arrays.items()},
                 **{"Transformer/posembed_input/pos_embedding": table.numpy()})
        model.load_pretrained(str(tmp_path / "x.npz"))
        return model.pos_embed.detach()

    equals("timm_npz", old, new, n_prefix, library)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "blip"])
@grids_from_square
@prefixes
def test_transformers(kind: str, old: tuple[int, int], new: tuple[int, int], n_prefix: int) -> None:
    def library(table: Tensor) -> Tensor:
        Config, Embeddings = {"vit": (ViTConfig, ViTEmbeddings), "dinov2": (Dinov2Config, Dinov2Embeddings),
                              "clip": (CLIPVisionConfig, CLIPVisionEmbeddings),
                              "blip": (BlipVisionConfig, BlipVisionEmbeddings)}[kind]
        module = Embeddings(Config(hidden_size=table.shape[2], image_size=2 * old[0], patch_size=2,
                                   num_attention_heads=1))
        place = {"clip": "position_embedding.weight", "blip": "position_embedding"}.get(kind, "position_embeddings")
        module.load_state_dict({place: table[0] if kind == "clip" else table}, strict=False)
        tokens = torch.zeros(1, 1 + new[0] * new[1], table.shape[2])
        return module.interpolate_pos_encoding(tokens, 2 * new[0], 2 * new[1]).detach()

    equals("hf", old, new, n_prefix, library, keeps=1)


@grids_from_square
@prefixes
def test_open_clip(old: tuple[int, int], new: tuple[int, int], n_prefix: int) -> None:
    def library(table: Tensor) -> Tensor:
        state = {"visual.positional_embedding": table[0]}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=new)))
        return state["visual.positional_embedding"][None]

    equals("open_clip", old, new, n_prefix, library, keeps=1)


@grids_from_square
@prefixes
def test_dinov2(old: tuple[int, int], new: tuple[int, int], n_prefix: int) -> None:
    def library(table: Tensor) -> Tensor:  # not on PyPI: its call, as of the release without registers
        side = math.sqrt(table.shape[1] - n_prefix)
        x = table[:, n_prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
        x = F.interpolate(x, scale_factor=((new[0] + 0.1) / side, (new[1] + 0.1) / side), mode="bicubic")
        return torch.cat([table[:, :n_prefix], x.flatten(2).mT], dim=1)

    equals("dinov2", old, new, n_prefix, library)


@pytest.mark.parametrize("has_class_token", [True, False])
@pytest.mark.parametrize(("old", "new"), [(one, other) for one, other in FROM_SQUARE if other[0] == other[1]])
@prefixes
def test_lukemelas(old: tuple[int, int], new: tuple[int, int], n_prefix: int, has_class_token: bool) -> None:
    def library(table: Tensor) -> Tensor:
        wanted = torch.empty(1, new[0] * new[1] + has_class_token, table.shape[2])
        return resize_positional_embedding_(table, wanted, has_class_token)

    equals("lukemelas", old, new, n_prefix, library, keeps=int(has_class_token))


@grids
def test_lukemelas_between_any_grids(old: tuple[int, int], new: tuple[int, int]) -> None:
    def library(table: Tensor) -> Tensor:
        resized = zoom(table.view(*old, -1).numpy(), (new[0] / old[0], new[1] / old[1], 1), order=1)
        return torch.from_numpy(resized).flatten(0, 1)[None]

    equals("lukemelas", old, new, 0, library)


@pytest.mark.parametrize("old", range(1, 33))
def test_lukemelas_is_zoom_at_every_size(old: int) -> None:
    """Its rows and columns of zeros, too, where its last sample falls beyond the last cell."""
    table, zeros = random_table((old, 3), 0, width=2), set()
    for new in range(1, 49):
        theirs = zoom(table.view(old, 3, 2).numpy(), (new / old, 1, 1), order=1)
        ours = resize_positions(table, (old, 3), (new, 3), n_prefix=0, rule="lukemelas").view(new, 3, 2)
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-6)
        zeros |= {new} if (ours[-1] == 0).all() else set()
    assert old not in (7, 12, 14, 24) or zeros == ({22, 42, 43} if old == 24 else set())  # the grids published


# -- formulas --------------------------------------------------------------------------------------------------

def cubic(a: float) -> Callable[[float], float]:
    """Keys' kernel (1981, "Cubic convolution interpolation for digital image processing")."""
    def kernel(t: float) -> float:
        t = abs(t)
        near, far = (a + 2) * t ** 3 - (a + 3) * t ** 2 + 1, a * (t ** 3 - 5 * t ** 2 + 8 * t - 4)
        return near if t <= 1 else far if t < 2 else 0.0
    return kernel


def hat(t: float) -> float:
    return max(0.0, 1 - abs(t))


def blend(rule: str, old: int, new: int) -> Tensor:
    """(new, old) float64: the share of each old cell in each new one, along a side."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        if rule == "lukemelas":
            for j in range(old):
                weights[i, j] = hat(i * (old - 1) / max(new - 1, 1) - j)
        elif rule in ("timm", "open_clip"):  # a wider kernel when shrinking; cells beyond the border do not count
            step, kernel = old / new, cubic(-0.5)
            for j in range(old):
                weights[i, j] = kernel((j + 0.5 - (i + 0.5) * step) / max(step, 1))
            weights[i] /= weights[i].sum()
        else:  # cells beyond the border are the border's
            step = old / (new + 0.1) if rule == "dinov2" else old / new
            place, kernel = (i + 0.5) * step - 0.5, hat if rule == "timm_npz" else cubic(-0.75)
            for j in range(math.floor(place) - 1, math.floor(place) + 3):
                weights[i, min(max(j, 0), old - 1)] += kernel(place - j)
    return weights


@pytest.mark.parametrize("rule", RULES)
@grids
@pytest.mark.parametrize(("n_prefix", "width"), [(0, 1), (1, 3), (2, 8), (5, 2)])
def test_formula(rule: str, old: tuple[int, int], new: tuple[int, int], n_prefix: int, width: int) -> None:
    table = random_table(old, n_prefix, width).double()
    cells = table[0, n_prefix:].view(*old, width)
    expected = torch.einsum("ia, jb, abd -> ijd", blend(rule, old[0], new[0]), blend(rule, old[1], new[1]), cells)
    ours = resize_positions(table, old, new, n_prefix=n_prefix, rule=rule)
    assert ours.dtype == torch.float64 and torch.equal(ours[:, :n_prefix], table[:, :n_prefix])
    torch.testing.assert_close(ours[0, n_prefix:], expected.flatten(0, 1), rtol=0, atol=1e-12)
    single = resize_positions(table.float(), old, new, n_prefix=n_prefix, rule=rule)
    torch.testing.assert_close(single.double(), ours, rtol=0, atol=2e-5)  # float32 places samples less finely


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((6, 9), (9, 6)), ((5, 5), (5, 6))])
def test_rules_differ(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = random_table(old, 1, width=16)
    tables = {rule: resize_positions(table, old, new, n_prefix=1, rule=rule)[:, 1:] for rule in RULES}
    assert set(tables) == {"timm", "timm_npz", "hf", "dinov2", "open_clip", "lukemelas"}
    for one, other in itertools.combinations(tables, 2):
        apart = float((tables[one] - tables[other]).norm() / tables[one].norm())
        assert apart == 0 if (one, other) == ("timm", "open_clip") else apart > 0.02, (one, other, apart)


# -- what every rule keeps -------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule", RULES)
@prefixes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_same_grid_is_the_same_table(rule: str, n_prefix: int, dtype: torch.dtype) -> None:
    table = random_table((3, 5), n_prefix).to(dtype)
    same = resize_positions(table.clone(), (3, 5), (3, 5), n_prefix=n_prefix, rule=rule)
    assert same.dtype == dtype and torch.equal(same, table)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(rule: str, dtype: torch.dtype) -> None:
    table = random_table((5, 4), 2).to(dtype)
    half = resize_positions(table, (5, 4), (7, 3), n_prefix=2, rule=rule)
    exact = resize_positions(table.float(), (5, 4), (7, 3), n_prefix=2, rule=rule)
    assert half.dtype == dtype and torch.equal(half, exact.to(dtype))


@pytest.mark.parametrize("rule", RULES)
def test_size_is_the_one_asked_for(rule: str) -> None:
    for old, new in itertools.product(range(1, 41), repeat=2):
        table = random_table((old, 1), 1, width=1)
        assert resize_positions(table, (old, 1), (new, 2), n_prefix=1, rule=rule).shape == (1, 1 + 2 * new, 1)


@pytest.mark.parametrize("rule", RULES)
def test_neither_a_default_device_nor_autocast_changes_it(rule: str) -> None:
    table = random_table((4, 6), 1)
    plain = resize_positions(table, (4, 6), (7, 3), n_prefix=1, rule=rule)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_positions(table, (4, 6), (7, 3), n_prefix=1, rule=rule), plain)


# -- wrong input -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("shape", "changes", "message"), [
    ((1, 21, 3), {"rule": "nearest"}, "resize='nearest': .* one of timm, timm_npz, hf, dinov2, open_clip, lukemelas"),
    ((1, 20, 3), {}, r"shape \(1, 20, 3\): a grid of 4x5 after 1 prefix rows needs \(1, 21, width\)"),
    ((2, 21, 3), {}, r"shape \(2, 21, 3\)"), ((21, 3), {}, r"shape \(21, 3\)"), ((1, 4, 5, 3), {}, "shape"),
    ((1, 20, 3), {"new": (4, 5)}, "shape"),  # of the same grid, too
    ((1, 19, 3), {"n_prefix": -1}, "-1 prefix rows"),
    ((1, 21, 3), {"new": (0, 4)}, r"from grid \(4, 5\) to \(0, 4\): each side needs at least one cell"),
    ((1, 21, 3), {"old": (-4, -5)}, r"from grid \(-4, -5\)"),
])
def test_refused(shape: tuple[int, ...], changes: dict[str, Any], message: str) -> None:
    arguments = {"old": (4, 5), "new": (6, 7), "n_prefix": 1, "rule": "timm", **changes}
    with pytest.raises(InputError, match=message):
        resize_positions(torch.zeros(shape), **arguments)
