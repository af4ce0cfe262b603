"""Geometry: exact boxes, windows and ways back and forth."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivl.errors import InputError
from minivl.geometry import Geometry

CROP = Geometry(source=(481, 640), resized=(256, 340), crop=(16, 58), size=(224, 224), patch=(16, 16))


@st.composite
def geometries(draw) -> Geometry:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    resized, size = pair(1, 700), pair(1, 600)
    crop = tuple(draw(st.integers(-side + 1, whole - 1)) for side, whole in zip(size, resized))
    return Geometry(source=pair(1, 6000), resized=resized, crop=crop, size=size, patch=pair(1, 40))


def exact_edge(geometry: Geometry, axis: int, tensor_pixel: int) -> Fraction:
    """Where a tensor edge lies in the source, in fractions, clipped to what source and tensor share."""
    resized = tensor_pixel + geometry.crop[axis]
    resized = min(max(resized, 0, geometry.crop[axis]), geometry.resized[axis],
                  geometry.crop[axis] + geometry.size[axis])
    return Fraction(resized * geometry.source[axis], geometry.resized[axis])


def test_box_by_hand() -> None:
    # Short side 481 -> 256, long 640 -> int(340.6): the two axes differ in scale.
    assert CROP.scale == (481 / 256, 640 / 340)
    assert CROP.grid == (14, 14)
    top, left, bottom, right = CROP.box(2, 5)
    assert top == pytest.approx((16 + 32) * 481 / 256, abs=1e-9)
    assert bottom == pytest.approx((16 + 48) * 481 / 256, abs=1e-9)
    assert left == pytest.approx((58 + 80) * 640 / 340, abs=1e-9)
    assert right == pytest.approx((58 + 96) * 640 / 340, abs=1e-9)
    assert CROP.window == pytest.approx((16 * 481 / 256, 58 * 640 / 340, 240 * 481 / 256, 282 * 640 / 340))
    assert CROP.valid.all()


@given(geometries(), st.data())
def test_box_is_exact_and_clipped(geometry: Geometry, data: st.DataObject) -> None:
    cell = [data.draw(st.integers(0, count - 1)) for count in geometry.grid]
    box = geometry.box(*cell)
    for axis in (0, 1):
        for side in (0, 1):
            exact = exact_edge(geometry, axis, (cell[axis] + side) * geometry.patch[axis])
            assert abs(Fraction(box[axis + 2 * side]) - exact) < Fraction(1, 10 ** 6)
    assert geometry.valid[tuple(cell)] == (box[2] > box[0] and box[3] > box[1])


@given(geometries())
def test_boxes_of_the_grid_tile_the_window(geometry: Geometry) -> None:
    rows = [geometry.box(i, 0)[0::2] for i in range(geometry.grid[0])]
    columns = [geometry.box(0, j)[1::2] for j in range(geometry.grid[1])]
    for spans, low, high in ((rows, *geometry.window[0::2]), (columns, *geometry.window[1::2])):
        assert spans[0][0] == low and spans[-1][1] == high
        assert all(before[1] == after[0] for before, after in zip(spans, spans[1:]))


@given(geometries(), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_there_and_back(geometry: Geometry, y: float, x: float) -> None:
    assert geometry.to_tensor(*geometry.to_source(y, x)) == pytest.approx((y, x), rel=1e-9, abs=1e-6)
    assert geometry.to_source(*geometry.to_tensor(y, x)) == pytest.approx((y, x), rel=1e-9, abs=1e-6)


def test_to_source_takes_arrays() -> None:
    y, x = CROP.to_source(np.arange(3.0), np.zeros(3))
    assert y == pytest.approx((np.arange(3) + 16) * 481 / 256)
    assert x == pytest.approx(np.full(3, 58 * 640 / 340))


def test_padded_batch() -> None:
    # 299 x 200 inside 299 x 299, stride 32: ten by ten cells, of which seven columns hold picture.
    alone = Geometry(source=(640, 429), resized=(299, 200), crop=(0, 0), size=(299, 200), patch=(32, 32))
    padded = alone.padded((299, 299))
    assert padded.content == (299, 200) and padded.size == (299, 299)
    assert alone.grid == (10, 7) and padded.grid == (10, 10)
    expected = np.zeros((10, 10), dtype=bool)
    expected[:, :7] = True
    assert (padded.valid == expected).all()
    assert padded.window == alone.window == (0, 0, 640, 429)
    for cell in [(0, 0), (9, 6), (4, 3)]:
        assert padded.box(*cell) == alone.box(*cell)
    top, left, bottom, right = padded.box(3, 8)  # padding only
    assert left == right == 429
    assert padded.box(9, 6)[2:] == (640, 429)  # the cut cell ends where the photo ends
    assert padded.padded((320, 320)).content == (299, 200)
    with pytest.raises(InputError, match="cannot be padded"):
        padded.padded((299, 298))


def test_content_smaller_than_the_resized_picture() -> None:
    cut = Geometry(source=(200, 400), resized=(100, 200), crop=(0, 0), size=(96, 96), patch=(32, 32),
                   content=(96, 60))
    assert cut.window == (0, 0, 192, 120)
    assert cut.valid.tolist() == [[True, True, False]] * 3
    assert cut.box(1, 1) == (64, 64, 128, 120)


def test_centre_crop_that_padded() -> None:
    small = Geometry(source=(50, 100), resized=(50, 100), crop=(-7, 18), size=(64, 64), patch=(8, 8))
    assert small.window == (0, 18, 50, 82)
    assert small.box(0, 0) == (0, 18, 1, 26)
    assert small.box(7, 7) == (49, 74, 50, 82)
    assert small.valid.all()
    outer = replace(small, resized=(34, 100), source=(34, 100), crop=(-15, 18))  # whole rows of padding
    assert outer.valid.tolist() == [[1 <= row < 7] * 8 for row in range(8)]
    assert outer.box(0, 0)[0] == outer.box(0, 0)[2] == 0


@pytest.mark.parametrize("cell", [(14, 0), (0, 14), (-1, 0), (0, -1)])
def test_a_cell_that_is_not_there(cell: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="14 x 14"):
        CROP.box(*cell)


@pytest.mark.parametrize("change, words", [
    ({"source": (0, 5)}, "source"), ({"size": (224.0, 224)}, "size"), ({"patch": 16}, "patch"),
    ({"content": (1, -1)}, "content"), ({"crop": (1,)}, "crop"), ({"resized": [256, 340]}, "resized"),
    ({"crop": (0, 340)}, "shows no columns"), ({"crop": (-224, 0)}, "shows no rows")])
def test_wrong_fields(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CROP, **change)
