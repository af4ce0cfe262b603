"""CATR's encoder: grids of any size, positions from the mask, and padding that is never silent."""

from __future__ import annotations

import math
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from catr_reference import SIZES, catr_state, sine
from PIL import Image
from torch import Tensor, nn

import minivl
from minivl.errors import InputError
from minivl.images import Preprocessing, batch, image_mask
from minivl.models.captioner import Captioner
from minivl.models.decoder import Memory
from minivl.models.grid import GridConfig, GridEncoder, cells_of, sine_positions
from minivl.nn.record import AttnRecord, filling

LONG = Preprocessing((96, 96), (0.5,) * 3, (0.5,) * 3, mode="long")


@pytest.fixture(scope="module")
def encoder() -> GridEncoder:
    """A small one, every parameter and running statistic random."""
    model = minivl.from_state_dict(catr_state())
    assert isinstance(model, Captioner) and isinstance(model.encoder, GridEncoder)
    return model.encoder


@torch.no_grad()
def look(encoder: GridEncoder, images: Tensor, mask: Tensor | None = None,
         attn: AttnRecord | None = None) -> Memory:
    encoder.check(images, mask)
    with filling(attn, encoder.sites(images), len(images), images.device):
        return encoder.look(images, mask, attn)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def corner(images: int, size: tuple[int, int], *contents: tuple[int, int]) -> Tensor:
    """A mask (B, *size) of pictures at the top left, as in a padded batch."""
    mask = torch.zeros(images, *size, dtype=torch.bool)
    for row, (height, width) in zip(mask, contents, strict=True):
        row[:height, :width] = True
    return mask


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


# -- positions and masks -------------------------------------------------------------------------------------

def test_positions_are_detrs() -> None:
    masks = torch.cat([corner(3, (5, 7), (5, 7), (3, 7), (1, 1)), random(2, 5, 7) > 0])
    for width in (4, 32, 256):
        places = sine_positions(masks, width)
        assert places.shape == (5, 35, width) and places.dtype == torch.float32
        torch.testing.assert_close(places, sine(masks, width), rtol=0, atol=2e-6)
    # by hand: of four cells side by side the second is half way round, the last all the way
    down_sine, down_cosine, right_sine, right_cosine = sine_positions(torch.ones(1, 1, 4, dtype=torch.bool), 4)[0].T
    torch.testing.assert_close(right_cosine, torch.tensor([0.0, -1.0, 0.0, 1.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(right_sine, torch.tensor([1.0, 0.0, -1.0, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack([down_sine, down_cosine]), torch.tensor([[0.0], [1.0]]).expand(2, 4),
                               rtol=0, atol=1e-5)


def test_rates_fall_from_one() -> None:
    """The k-th pair of channels turns 10000^(-2k/(D/2)) as fast as the first."""
    places = sine_positions(torch.ones(1, 6, 1, dtype=torch.bool), 64)[0]  # (6, 64)
    for pair, rate in ((0, 1.0), (1, 10000 ** (-1 / 16)), (8, 0.01), (15, 10000 ** (-15 / 16))):
        angle = 2 * math.pi / 6 * rate  # of the first of six cells
        assert places[0, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert places[0, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_of_a_padded_picture_are_those_it_has_alone() -> None:
    alone = sine_positions(torch.ones(1, 3, 4, dtype=torch.bool), 32).view(3, 4, 32)
    padded = sine_positions(corner(1, (6, 9), (3, 4)), 32).view(6, 9, 32)
    assert torch.equal(padded[:3, :4], alone)


@pytest.mark.parametrize("size", [(299, 224), (192, 256), (33, 17), (16, 5), (1, 1), (160, 299)])
def test_cells_follow_their_nearest_pixel(size: tuple[int, int]) -> None:
    grid = -(-size[0] // 16), -(-size[1] // 16)
    mask = random(3, *size) > 0
    rows = [i * size[0] // grid[0] for i in range(grid[0])]
    columns = [j * size[1] // grid[1] for j in range(grid[1])]
    assert torch.equal(cells_of(mask, grid), mask[:, rows][:, :, columns])


def test_the_grid_of_any_size(encoder: GridEncoder) -> None:
    assert encoder.cell == (16, 16) and encoder.attn_sites == {"encoder": (2, 8)}
    for size, grid in (((1, 1), (1, 1)), ((16, 17), (1, 2)), ((31, 33), (2, 3)), ((96, 64), (6, 4)),
                       ((65, 50), (5, 4))):
        images = random(2, 3, *size)
        memory = look(encoder, images)
        assert memory.grid == grid and memory.n_prefix == 0 and memory.mask is None
        assert memory.tokens.shape == memory.pos.shape == (2, grid[0] * grid[1], 32)
        assert encoder.sites(images)["encoder"].queries == grid[0] * grid[1]


# -- what the mask does --------------------------------------------------------------------------------------

def test_masked_cells_have_no_weight(encoder: GridEncoder) -> None:
    images, mask = random(2, 3, 80, 64), corner(2, (80, 64), (80, 64), (44, 30))
    record = AttnRecord()
    memory = look(encoder, images * mask[:, None], mask, record)
    assert memory.mask is not None and torch.equal(memory.mask, cells_of(mask, (5, 4)).flatten(1))
    assert memory.mask[0].all() and memory.mask[1].sum() == 6  # 3 x 2 cells of 16 pixels
    for layer in range(2):
        weights = record["encoder", layer]
        assert weights.shape == (2, 8, 20, 20) and not weights[1, :, :, ~memory.mask[1]].any()
        assert (weights[1][..., memory.mask[1]] > 0).all() and (weights[0] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 20))


def test_a_mask_of_ones_is_none(encoder: GridEncoder) -> None:
    images = random(2, 3, 40, 50)
    without, ones = look(encoder, images), look(encoder, images, torch.ones(2, 40, 50, dtype=torch.bool))
    assert ones.mask is not None and ones.mask.all()
    assert torch.equal(ones.pos, without.pos)
    torch.testing.assert_close(ones.tokens, without.tokens, rtol=0, atol=5e-6)


def test_only_the_convolutions_see_padding(encoder: GridEncoder) -> None:
    """From its features on, a padded picture is what it is alone."""
    features, mask = random(1, 2048, 5, 6).relu(), corner(1, (80, 96), (48, 64))
    images = random(1, 3, 80, 96) * mask[:, None]
    inside = cells_of(mask, (5, 6))[0]  # 3 x 4 cells
    assert inside[:3, :4].all() and inside.sum() == 12
    changed = deepcopy(encoder)

    def given(features: Tensor, mask: Tensor | None) -> Tensor:
        changed.backbone = Given(features)
        with torch.no_grad():
            return changed.look(images, mask, None).tokens[0]

    padded = given(features, mask)
    alone = given(features[:, :, :3, :4], None)
    torch.testing.assert_close(padded[inside.flatten()], alone, rtol=0, atol=5e-6)
    other = features.masked_fill(~inside, 7.0)
    assert torch.equal(given(other, mask)[inside.flatten()], padded[inside.flatten()])
    assert not torch.allclose(given(other, None)[inside.flatten()], padded[inside.flatten()], atol=1e-2)


class Given(nn.Module):
    """A backbone that gives these features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features


def test_the_convolutions_do_see_padding(encoder: GridEncoder) -> None:
    """Why captions are made size by size."""
    picture, mask = random(1, 3, 48, 64), corner(1, (96, 96), (48, 64))
    padded = torch.zeros(1, 3, 96, 96)
    padded[:, :, :48, :64] = picture
    alone, seen = look(encoder, picture), look(encoder, padded, mask)
    assert seen.mask is not None and seen.mask.sum() == 12
    difference = (seen.tokens[seen.mask] - alone.tokens[0]).abs().amax(-1)  # (12,)
    assert difference.max() > 0.1
    assert torch.equal(seen.pos[seen.mask], alone.pos[0])


# -- precision and training ----------------------------------------------------------------------------------

def test_half_precision(encoder: GridEncoder) -> None:
    images, mask = random(2, 3, 80, 64), corner(2, (80, 64), (80, 64), (44, 30))
    images = images * mask[:, None]
    exact = look(encoder, images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        cast = look(encoder, images, mask)
    assert torch.equal(cast.pos, exact.pos)  # positions are computed in float32
    half = minivl.from_state_dict(catr_state()).encoder.bfloat16()
    low = look(half, images.bfloat16(), mask)
    assert low.tokens.dtype == low.pos.dtype == torch.bfloat16
    for other in (cast, low):
        difference = (other.tokens.float() - exact.tokens).abs()
        assert 1e-4 < difference.mean() < 0.05 * exact.tokens.abs().mean()


def test_norms_are_frozen_in_training() -> None:
    encoder = minivl.from_state_dict(catr_state()).encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    names = [name for name, _ in encoder.named_parameters()]
    assert len(before) == 4 * 17 and not any(".bn" in name or "downsample.1" in name for name in names)
    memory = encoder.look(random(1, 3, 32, 32), None, None)
    memory.tokens.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.named_buffers())
    assert all(tensor.grad is not None for tensor in encoder.parameters())


# -- mistakes ------------------------------------------------------------------------------------------------

def test_forgetting_the_mask_raises(encoder: GridEncoder) -> None:
    photos = [photo(96, 70, 1), photo(96, 70, 2), photo(40, 96, 3)]
    images, geometries = batch(photos, LONG, encoder.cell)
    with pytest.raises(InputError, match=r"image 0 of the batch ends in .* exact zeros.*image_mask=minivl\.images\."
                                         r"image_mask\(geometries\).*caption\(\)"):
        encoder.check(images, None)
    with pytest.raises(InputError, match="image 1 of the batch"):
        encoder.check(torch.cat([random(1, 3, 96, 96), images[2:]]), None)
    encoder.check(images, image_mask(geometries))
    encoder.check(batch(photos[:2], LONG, encoder.cell)[0], None)  # of one size: nothing was padded
    for shade in range(256):  # no flat photo is taken for padding
        encoder.check(batch([Image.new("L", (5, 6), shade)], LONG, encoder.cell)[0][..., -1:], None)


@pytest.mark.parametrize("mask, message", [
    (torch.ones(2, 32, 48), r"torch\.float32 of shape \(2, 32, 48\): give torch\.bool of shape \(2, 32, 48\)"),
    (torch.ones(2, 48, 32, dtype=torch.bool), r"shape \(2, 48, 32\): give torch\.bool of shape \(2, 32, 48\)"),
    (torch.ones(1, 32, 48, dtype=torch.bool), "True = picture"),
    (torch.ones(2, 2, 3, dtype=torch.bool), "True = picture"),
    ([[True]], "is a list: give torch.bool"),
    (corner(2, (32, 48), (32, 48), (0, 0)), "no cell of image 1 as picture"),
    (~corner(2, (32, 48), (32, 48), (20, 20)), "no cell of image 0 as picture"),  # the wrong way round
    (corner(2, (32, 48), (32, 48), (1, 1)).flip(1), "no cell of image 1 as picture"),  # no cell's nearest pixel
])
def test_masks_that_cannot_be(encoder: GridEncoder, mask: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.check(random(2, 3, 32, 48), mask)  # type: ignore[arg-type]


def test_a_mask_the_wrong_way_round(encoder: GridEncoder) -> None:
    mask = corner(2, (96, 96), (96, 60), (50, 96))
    images = random(2, 3, 96, 96) * mask[:, None]
    encoder.check(images, mask)
    with pytest.raises(InputError, match="image_mask of image 0 is True on exact zeros only.*True = picture"):
        encoder.check(images, ~mask)
    encoder.check(torch.zeros(1, 3, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool))  # whoever says so
    encoder.check(images[:0], mask[:0])


@pytest.mark.parametrize("images, message", [
    (random(3, 32, 32), r"shape \(3, 32, 32\): this model takes \(B, 3, H, W\)"),
    (random(1, 1, 32, 32), r"takes \(B, 3, H, W\)"), (random(1, 3, 0, 32), "of any H and W"),
    (random(1, 3, 32, 32).double(), r"images are torch\.float64, the weights torch\.float32"),
    ([], "images is a list"),
])
def test_images_that_cannot_be(encoder: GridEncoder, images: Tensor, message: str) -> None:
    for mask in (None, torch.ones(1, 32, 32, dtype=torch.bool)):
        with pytest.raises(InputError, match=message):
            encoder.check(images, mask)


@pytest.mark.parametrize("changes, message", [
    ({"width": 30}, "width=30: give a multiple of 4"), ({"layers": (1, 1, 1)}, r"layers=\(1, 1, 1\)"),
    ({"layers": (1, 1, 0, 1)}, "four stages"), ({"depth": 0}, "depth=0"), ({"num_heads": 5}, "num_heads 5"),
    ({"act": "tanh"}, "unknown activation 'tanh'"), ({"eps": 0.0}, "eps"),
])
def test_configs_that_cannot_be(changes: dict[str, object], message: str) -> None:
    settings = {"width": 32, "depth": 1, "num_heads": 8, "mlp_dim": 8, "layers": SIZES["layers"], **changes}
    with pytest.raises(InputError, match=message), torch.device("meta"):
        GridEncoder(GridConfig(**settings))  # type: ignore[arg-type]


def test_importing_leaves_torchvision_out() -> None:
    code = "import sys, minivl, minivl.models.grid; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
