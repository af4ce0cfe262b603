"""Maps: a patch lands on its own box of the photo, whatever the way in was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from minivl.errors import InputError
from minivl.geometry import Geometry
from minivl.images import Preprocessing, batch, to_tensor
from minivl.maps import peak, peak_pixel, to_grid, upsample

SHAPES = [(97, 211), (211, 97), (130, 130), (37, 29)]
SMOOTH = ["bilinear", "bicubic"]


def geometry_of(height: int, width: int, mode: str, patch: int, crop_pct: float = 0.875) -> Geometry:
    preprocessing = Preprocessing((224, 224), mean=(0, 0, 0), std=(1, 1, 1), mode=mode, crop_pct=crop_pct)
    return to_tensor(Image.new("RGB", (width, height)), preprocessing, patch)[1]


def whole(source: tuple[int, int], grid: tuple[int, int]) -> Geometry:
    """A squash that cuts nothing."""
    size = grid[0] * 16, grid[1] * 16
    return Geometry(source=source, resized=size, crop=(0, 0), size=size, patch=(16, 16))


def by_definition(geometry: Geometry, i: int, j: int) -> np.ndarray:
    """1 where the box of the cell holds the pixel's centre, 0 elsewhere in the window, nan outside."""
    y, x = np.mgrid[:geometry.source[0], :geometry.source[1]] + 0.5

    def holds(box: tuple[float, float, float, float]) -> np.ndarray:
        return (box[0] <= y) & (y < box[2]) & (box[1] <= x) & (x < box[3])

    return np.where(holds(geometry.window), holds(geometry.box(i, j)).astype(float), np.nan)


# ---- to_grid

@pytest.mark.parametrize("n_prefix", [0, 1, 2, 5])
def test_to_grid_drops_the_prefix(n_prefix: int) -> None:
    gh, gw = 3, 5
    weights = torch.rand(2, 4, 6, n_prefix + gh * gw)
    grid = to_grid(weights, n_prefix, (gh, gw))
    assert grid.shape == (2, 4, 6, gh, gw)
    for i in range(gh):
        for j in range(gw):
            assert torch.equal(grid[..., i, j], weights[..., n_prefix + i * gw + j])


def test_to_grid_names_both_numbers() -> None:
    with pytest.raises(InputError, match="197 keys.* make 198"):
        to_grid(torch.rand(1, 197), 2, (14, 14))


# ---- nearest: exactly the box

@pytest.mark.parametrize("patch, n_prefix", [(8, 0), (14, 1), (16, 2), (32, 5)])
@pytest.mark.parametrize("mode", ["crop", "squash", "long"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_hot_patch_lands_on_its_box(shape: tuple[int, int], mode: str, patch: int, n_prefix: int) -> None:
    geometry = geometry_of(*shape, mode, patch)
    gh, gw = geometry.grid
    for i, j in {(0, 0), (gh - 1, gw - 1), (gh // 2, gw // 3), (0, gw - 1)}:
        weights = torch.zeros(n_prefix + gh * gw)
        weights[:n_prefix] = 7
        weights[n_prefix + i * gw + j] = 1
        pixels = upsample(to_grid(weights, n_prefix, (gh, gw)), geometry, "nearest")
        assert pixels.shape == shape and pixels.dtype == torch.float32
        np.testing.assert_array_equal(pixels.numpy(), by_definition(geometry, i, j))
        assert peak_pixel(to_grid(weights, n_prefix, (gh, gw)), geometry) == pytest.approx(
            (np.mean(geometry.box(i, j)[0::2]), np.mean(geometry.box(i, j)[1::2])))


def test_one_hot_where_the_crop_padded() -> None:
    geometry = geometry_of(97, 150, "crop", 16, crop_pct=1.25)
    assert geometry.crop[0] < 0 and not geometry.valid.all()
    for i, j in [(2, 0), (7, 7), (11, 13)]:
        one = torch.zeros(14, 14)
        one[i, j] = 1
        pixels = upsample(one, geometry, "nearest")
        np.testing.assert_array_equal(pixels.numpy(), by_definition(geometry, i, j))


def test_a_centre_on_an_edge_belongs_below_and_right_of_it() -> None:
    # Twice as many tensor pixels as source pixels: centres lie on whole tensor pixels, some of them edges.
    geometry = Geometry(source=(9, 8), resized=(18, 16), crop=(1, 3), size=(14, 12), patch=(2, 6))
    for i, j in np.ndindex(geometry.grid):
        one = torch.zeros(geometry.grid)
        one[i, j] = 1
        pixels = upsample(one, geometry, "nearest")
        np.testing.assert_array_equal(pixels.numpy(), by_definition(geometry, i, j))


def test_every_pixel_of_the_window_has_one_cell() -> None:
    geometry = geometry_of(97, 211, "crop", 16)
    numbers = torch.arange(196.0).view(14, 14)
    pixels = upsample(numbers, geometry, "nearest")
    counted = sum(by_definition(geometry, i, j) * (14 * i + j) for i in range(14) for j in range(14))
    np.testing.assert_array_equal(pixels.numpy(), counted)


def test_padded_batch_lands_on_each_photo() -> None:
    preprocessing = Preprocessing(size=(299, 299), mean=(0, 0, 0), std=(1, 1, 1), mode="long")
    photos = [Image.new("RGB", (width, height)) for height, width in SHAPES]
    _, geometries = batch(photos, preprocessing, 32)
    maps = torch.rand(len(photos), 10, 10)
    for heat, geometry, shape in zip(maps, geometries, SHAPES):
        assert geometry.source == shape and geometry.grid == (10, 10)
        for i, j in np.argwhere(geometry.valid)[[0, -1]]:
            one = torch.zeros(10, 10)
            one[i, j] = 1
            pixels = upsample(one, geometry, "nearest")
            np.testing.assert_array_equal(pixels.numpy(), by_definition(geometry, i, j))
        # What stands in the padding changes nothing, not even when it is nan or the largest.
        for junk in (1e9, -1e9, torch.nan):
            changed = heat.where(torch.from_numpy(geometry.valid), torch.tensor(junk))
            for mode in ("nearest", *SMOOTH):
                assert torch.equal(upsample(changed, geometry, mode), upsample(heat, geometry, mode))
            assert peak_pixel(changed, geometry) == peak_pixel(heat, geometry)
            assert not upsample(changed, geometry).isnan().any()


# ---- smooth modes

@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("source, grid", [((70, 90), (7, 5)), ((33, 101), (14, 14)), ((9, 5), (7, 7)),
                                          ((50, 60), (1, 2))])
def test_smooth_is_torchs_where_the_whole_photo_is_seen(source: tuple[int, int], grid: tuple[int, int],
                                                        mode: str) -> None:
    heat = torch.randn(2, 3, *grid)
    heat[..., 0, 0] = -2  # nothing is cut from a map with negative values
    expected = torch.nn.functional.interpolate(heat.double(), size=source, mode=mode, align_corners=False)
    assert (upsample(heat, whole(source, grid), mode) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("shape", SHAPES)
def test_smooth_shows_a_slope_where_it_is(shape: tuple[int, int], mode: str) -> None:
    # A linear function of the source coordinates, sampled at the centres of the cells, comes back as itself.
    geometry = geometry_of(*shape, "crop", 16)
    centre = torch.arange(14, dtype=torch.float64) * 16 + 8
    y, x = geometry.to_source(centre, centre)
    heat = (3 * y[:, None] - 2 * x[None]).float()
    pixels = upsample(heat, geometry, mode).numpy()
    rows, columns = np.mgrid[:shape[0], :shape[1]] + 0.5
    tensor_y, tensor_x = geometry.to_tensor(rows, columns)
    # Cubic taps need two cells to each side; nearer to the border the value is held.
    inner = (tensor_y > 24) & (tensor_y < 200) & (tensor_x > 24) & (tensor_x < 200)
    assert inner.sum() > 100
    error = (pixels - (3 * rows - 2 * columns))[inner]
    # Cubic convolution with a = -0.75 bends a slope a little between the centres, to either side.
    bend = 0 if mode == "bilinear" else 0.05 * 16 * (3 * geometry.scale[0] + 2 * geometry.scale[1])
    assert np.abs(error).max() < bend + 1e-3 and abs(error.mean()) < 0.02 * bend + 1e-3
    assert (np.isnan(pixels) == np.isnan(by_definition(geometry, 0, 0))).all()


@pytest.mark.parametrize("mode", SMOOTH)
def test_smooth_is_the_cell_at_its_centre(mode: str) -> None:
    # Boxes of 5 x 3 source pixels: the middle pixel's centre is the cell's.
    heat = torch.rand(7, 9)
    pixels = upsample(heat, whole((35, 27), (7, 9)), mode)
    assert torch.allclose(pixels[2::5, 1::3], heat, atol=1e-6)


def test_heat_never_falls_below_the_least() -> None:
    heat = torch.rand(5, 14, 14) ** 8
    heat[1] += 3
    heat[2] -= 0.5  # may swing freely
    pixels = upsample(heat, whole((211, 190), (14, 14)))
    low = heat.amin((1, 2))
    assert (pixels.amin((1, 2)) >= low)[[0, 1, 3, 4]].all() and pixels[2].min() < low[2] - 0.01
    raw = torch.nn.functional.interpolate(heat[None], size=(211, 190), mode="bicubic", align_corners=False)[0]
    assert raw[0].min() < -0.01  # so there was something to cut


@pytest.mark.parametrize("mode", ["nearest", *SMOOTH])
def test_leading_dimensions_types_and_gradients(mode: str) -> None:
    geometry = geometry_of(97, 211, "crop", 32)
    heat = torch.rand(2, 3, 1, 7, 7, requires_grad=True)
    pixels = upsample(heat, geometry, mode)
    assert pixels.shape == (2, 3, 1, 97, 211)
    torch.testing.assert_close(pixels[1, 2, 0], upsample(heat[1, 2, 0], geometry, mode), equal_nan=True)
    pixels.nansum().backward()
    window = float((~pixels[0, 0, 0].isnan()).sum())
    assert heat.grad is not None and float(heat.grad.sum()) == pytest.approx(6 * window, rel=1e-3)
    half = upsample(heat.detach().half(), geometry, mode)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pixels.detach(), atol=2e-3, rtol=0, equal_nan=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(upsample(heat, geometry, mode), pixels, equal_nan=True, atol=0, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["nearest", *SMOOTH])
def test_on_a_gpu(mode: str) -> None:
    geometry = geometry_of(97, 211, "crop", 32)
    heat = torch.rand(2, 7, 7)
    pixels = upsample(heat.cuda(), geometry, mode)
    assert pixels.is_cuda
    torch.testing.assert_close(pixels.cpu(), upsample(heat, geometry, mode), equal_nan=True)
    assert peak_pixel(heat[0].cuda(), geometry) == peak_pixel(heat[0], geometry)


def test_a_big_photo() -> None:
    geometry = Geometry(source=(4000, 3000), resized=(341, 256), crop=(58, 16), size=(224, 224),
                        patch=(16, 16))
    one = torch.zeros(14, 14)
    one[3, 4] = 1
    pixels = upsample(one, geometry, "nearest")
    top, left, bottom, right = geometry.box(3, 4)
    rows, columns = (pixels == 1).any(1).nonzero().flatten(), (pixels == 1).any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1]) + 1) == (math.ceil(top - 0.5), math.ceil(bottom - 0.5))
    assert (int(columns[0]), int(columns[-1]) + 1) == (math.ceil(left - 0.5), math.ceil(right - 0.5))
    smooth = upsample(one, geometry)
    y, x = divmod(int(smooth.nan_to_num(-1).argmax()), 3000)
    assert peak_pixel(one, geometry) == pytest.approx((y + 0.5, x + 0.5), abs=2)


# ---- peaks and mistakes

def test_peak() -> None:
    heat = torch.rand(6, 9)
    heat[4, 7] = 2
    assert peak(heat) == (4, 7)
    heat[4, 8] = 2
    assert peak(heat) == (4, 7)
    heat[0, 0] = torch.nan
    with pytest.raises(InputError, match="nan"):
        peak(heat)
    with pytest.raises(InputError, match="shape"):
        peak(heat[None])


def test_peak_pixel_in_a_cut_cell() -> None:
    geometry = Geometry(source=(450, 450), resized=(225, 225), crop=(0, 0), size=(225, 225), patch=(32, 32))
    heat = torch.rand(8, 8)
    heat[7, 2] = 2
    assert peak_pixel(heat, geometry) == (449, 160)


def test_wrong_requests() -> None:
    geometry = geometry_of(97, 211, "crop", 16)
    with pytest.raises(InputError, match="cubic.*bicubic, bilinear, nearest"):
        upsample(torch.rand(14, 14), geometry, "cubic")
    for shape in ((7, 7), (14,), (14, 14, 1)):
        with pytest.raises(InputError, match=r"\(14, 14\)"):
            upsample(torch.rand(shape), geometry)
        with pytest.raises(InputError, match=r"\(14, 14\)"):
            peak_pixel(torch.rand(shape), geometry)
