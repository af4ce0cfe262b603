"""Photos: opening of every kind, and preprocessing equal to timm's, bit for bit."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minivl.errors import InputError
from minivl.images import Preprocessing, batch, image_mask, open_photo, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(size=(224, 224), mean=MEAN, std=STD)
PLAIN = Preprocessing(size=(64, 64), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0)
SHAPES = [(300, 500), (500, 300), (401, 333), (333, 401), (40, 31), (7, 90), (90, 7), (224, 224), (256, 256),
          (1, 1)]
# Stored picture -> displayed picture, by the EXIF standard, in numpy.
UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
           7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, 1)}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(height, width, seed))


def write(folder: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# ---- equality with timm

def timm_transform(preprocessing: Preprocessing, crop_mode: str = "center"):
    from timm.data import create_transform
    return create_transform(input_size=(3, *preprocessing.size), interpolation=preprocessing.interpolation,
                            mean=preprocessing.mean, std=preprocessing.std, crop_pct=preprocessing.crop_pct,
                            crop_mode=crop_mode)


@pytest.mark.parametrize("height, width", SHAPES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.25])
def test_crop_is_timms(height: int, width: int, crop_pct: float) -> None:
    preprocessing = Preprocessing(size=(224, 224), mean=MEAN, std=STD, crop_pct=crop_pct)
    image = photo(height, width)
    tensor, _ = to_tensor(image, preprocessing, 16)
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.equal(tensor, timm_transform(preprocessing)(image))


@pytest.mark.parametrize("height, width", [(300, 500), (500, 300), (61, 47), (401, 333)])
@pytest.mark.parametrize("size", [(224, 160), (96, 225)])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0, 1.3])
def test_crop_that_is_not_square_is_timms(height: int, width: int, size: tuple[int, int],
                                          crop_pct: float) -> None:
    preprocessing = Preprocessing(size=size, mean=MEAN, std=STD, crop_pct=crop_pct)
    image = photo(height, width)
    tensor, _ = to_tensor(image, preprocessing, 16)
    assert torch.equal(tensor, timm_transform(preprocessing)(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "lanczos"])
def test_other_filters_are_timms(interpolation: str) -> None:
    preprocessing = Preprocessing(size=(48, 48), mean=MEAN, std=STD, interpolation=interpolation)
    image = photo(83, 120)
    assert torch.equal(to_tensor(image, preprocessing, 16)[0], timm_transform(preprocessing)(image))


def test_squash_is_timms() -> None:
    preprocessing = Preprocessing(size=(48, 80), mean=MEAN, std=STD, crop_pct=1.0, mode="squash")
    image = photo(83, 61)
    tensor, geometry = to_tensor(image, preprocessing, 16)
    assert torch.equal(tensor, timm_transform(preprocessing, "squash")(image))
    assert geometry.window == (0, 0, 83, 61) and geometry.scale == (83 / 48, 61 / 80)


@pytest.mark.shared
def test_real_photos_are_timms(shared: Path) -> None:
    files = sorted((shared / "data").rglob("*.jpg"))[::400][:8]
    assert files
    transform = timm_transform(IMAGENET)
    expected = []
    for file in files:
        with Image.open(file) as image:
            expected.append(transform(image.convert("RGB")))
    assert torch.equal(batch(files, IMAGENET, 16)[0], torch.stack(expected))


# ---- geometry against real pixels

def painted(height: int, width: int, box: tuple[float, float, float, float]) -> Image.Image:
    """Black, and white in the box; pixels that the box holds in part are as grey as the part."""
    def share(low: float, high: float, count: int) -> np.ndarray:
        pixel = np.arange(count)
        return (np.minimum(pixel + 1, high) - np.maximum(pixel, low)).clip(0, 1)

    inside = np.outer(share(box[0], box[2], height), share(box[1], box[3], width))
    return Image.fromarray((inside * 255).round().astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("mode", ["crop", "squash", "long"])
@pytest.mark.parametrize("height, width", [(300, 411), (411, 300), (257, 257), (40, 33)])
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_a_painted_box_fills_its_cell(mode: str, height: int, width: int, patch: int) -> None:
    preprocessing = Preprocessing(size=(112, 112), mean=(0, 0, 0), std=(1, 1, 1), mode=mode,
                                  interpolation="bilinear")
    _, geometry = to_tensor(Image.new("RGB", (width, height)), preprocessing, patch)
    cells = np.argwhere(geometry.valid)
    centred = 0
    for i, j in (cells[0], [geometry.grid[0] // 3, geometry.grid[1] // 2], cells[-1]):
        box = geometry.box(i, j)
        tensor, again = to_tensor(painted(height, width, box), preprocessing, patch)
        assert again == geometry
        white = tensor[0].double()
        cell = torch.zeros_like(white)
        cell[i * patch:(i + 1) * patch, j * patch:(j + 1) * patch] = 1
        # Grey edge pixels and the bilinear filter each blur by about one source or tensor pixel.
        blur = 2 * (2 + 2 * math.ceil(1 / min(geometry.scale))) + 1

        def spread(shape: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.max_pool2d(shape[None], blur, 1, blur // 2)[0]

        well_inside, well_outside = spread(1 - cell) == 0, spread(cell) == 0
        if mode == "crop":  # beyond the crop the photo is black, and blurs into it
            well_inside &= spread(torch.nn.functional.pad(torch.zeros(110, 110), (1,) * 4, value=1)) == 0
        assert (white[well_inside] > 0.95).all() and (white[well_outside] < 0.05).all()
        assert well_outside.any()
        if 0 < i < geometry.grid[0] - 1 and 0 < j < geometry.grid[1] - 1:
            # Blur hardly moves the centre of mass: an offset of half a pixel would show.
            y, x = torch.arange(white.shape[0]) + 0.5, torch.arange(white.shape[1]) + 0.5
            assert float((white.sum(1) * y).sum() / white.sum()) == pytest.approx((i + 0.5) * patch, abs=0.15)
            assert float((white.sum(0) * x).sum() / white.sum()) == pytest.approx((j + 0.5) * patch, abs=0.15)
            assert float(white.sum()) == pytest.approx(patch ** 2, rel=0.02)
            centred += 1
    assert centred or patch == 32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_geometry_of_a_turned_jpeg(tmp_path: Path, orientation: int) -> None:
    height, width = (300, 411)  # as displayed
    _, geometry = to_tensor(Image.new("RGB", (width, height)), PLAIN, 16)
    displayed = np.asarray(painted(height, width, geometry.box(1, 2)))
    # The inverse of a quarter turn is three of them; every other orientation undoes itself.
    stored = displayed
    for _ in range(3 if orientation in (6, 8) else 1):
        stored = UPRIGHT[orientation](stored)
    file = write(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), "turned.jpg", quality=98,
                 exif=exif(orientation))
    tensor, turned = to_tensor(file, PLAIN, 16)
    assert turned == geometry and turned.source == (height, width)
    assert tensor[:, 18:30, 34:46].min() > 0.9
    tensor[:, 14:34, 30:50] = 0
    assert tensor.max() < 0.1


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 0, 9])
def test_every_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = noise(5, 9)
    options = {"lossless": True} if suffix == "webp" else {}
    file = write(tmp_path, Image.fromarray(stored), f"turned.{suffix}", exif=exif(orientation), **options)
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(stored)
    opened = open_photo(file)
    assert np.array_equal(np.asarray(opened), expected)
    assert np.array_equal(np.asarray(open_photo(opened)), expected)  # not turned a second time
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(open_photo(image)), expected)


def test_orientation_survives_a_change_of_mode(tmp_path: Path) -> None:
    deep = (np.random.default_rng(0).integers(0, 256, (5, 9)) * 257).astype(np.uint16)
    file = write(tmp_path, Image.fromarray(deep), "deep.png", exif=exif(6))
    assert np.array_equal(np.asarray(open_photo(file))[..., 1], np.rot90(deep // 257, -1))


def test_broken_exif_is_reported_and_the_photo_upright(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, photo(4, 6), "a.png")

    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(np.asarray(open_photo(file)), noise(4, 6))
    assert str(file) in caplog.text


# ---- kinds of photos

def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    image = Image.fromarray(rgba)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for given in (image, write(tmp_path, image, "a.png"), image.convert("RGBa")):
        opened = np.asarray(open_photo(given)).astype(float)
        assert np.abs(opened - expected).max() <= (2 if getattr(given, "mode", "") == "RGBa" else 1)
        assert (opened[0] == 255).all() and (opened[1] == rgba[1, :, :3]).all()


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_grey_and_palette_with_alpha(mode: str) -> None:
    rgba = np.zeros((2, 4, 4), dtype=np.uint8)
    rgba[..., :3] = np.array([[10], [200]])[:, None]
    rgba[..., 3] = [0, 255, 0, 255]
    opened = np.asarray(open_photo(Image.fromarray(rgba).convert(mode)))
    assert (opened[:, 0::2] == 255).all()
    assert (opened[:, 1::2] == rgba[:, 1::2, :3]).all()


def test_palettes(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert np.asarray(open_photo(write(tmp_path, image, "p.png"))).tolist() == [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    clear = write(tmp_path, image, "t.png", transparency=1)
    assert np.asarray(open_photo(clear)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    gif = write(tmp_path, image, "t.gif", transparency=1)
    assert np.asarray(open_photo(gif)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_one_colour_made_transparent(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    file = write(tmp_path, image, "key.png", transparency=(4, 5, 6))
    assert np.asarray(open_photo(file)).tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_grey_bits_and_cmyk(tmp_path: Path) -> None:
    grey = noise(4, 5)[..., 0]
    opened = np.asarray(open_photo(write(tmp_path, Image.fromarray(grey), "l.png")))
    assert (opened == grey[..., None]).all()
    bits = Image.fromarray(grey > 100)
    assert bits.mode == "1"
    assert (np.asarray(open_photo(write(tmp_path, bits, "1.png"))) == (grey > 100)[..., None] * 255).all()
    flat = Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK")
    file = write(tmp_path, flat, "c.jpg", quality=100)
    with Image.open(file) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.asarray(open_photo(file)).astype(int) - [200, 40, 90]).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    eight = np.arange(256).reshape(16, 16)
    deep = (eight * 257).astype(np.uint16)
    image = Image.fromarray(deep)
    assert image.mode == "I;16"
    for given in (image, write(tmp_path, image, "d.png"), write(tmp_path, image, "d.tiff"),
                  Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep.astype(np.float32)),
                  Image.fromarray(eight.astype(np.int32)), Image.fromarray(eight.astype(np.float32)),
                  Image.fromarray((eight / 255).astype(np.float32))):
        assert np.array_equal(np.asarray(open_photo(given)), np.repeat(eight[..., None], 3, 2)), given
    big_endian = tmp_path / "d.pgm"
    big_endian.write_bytes(b"P5 16 16 65535\n" + (deep // 300).astype(">u2").tobytes())
    opened = np.asarray(open_photo(big_endian))[..., 0]  # dark, and 16 bits all the same
    assert np.array_equal(opened, ((deep // 300) / 257).round())


@pytest.mark.parametrize("values", [[-1.0, 5.0], [0.0, np.nan], [0.0, 1e6]])
def test_grey_without_a_known_white(values: list[float]) -> None:
    with pytest.raises(InputError, match="grey values"):
        open_photo(Image.fromarray(np.array([values], dtype=np.float32)))


def test_the_given_image_is_left_alone(tmp_path: Path) -> None:
    image = photo(4, 5)
    opened = open_photo(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), noise(4, 5))
    with Image.open(write(tmp_path, image, "a.png", exif=exif(6))) as given:
        open_photo(given)
        assert given.getexif()[0x0112] == 6 and given.size == (5, 4)


# ---- what cannot be opened

def test_what_cannot_be_opened(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    whole = io.BytesIO()
    photo(64, 64).save(whole, "jpeg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.getvalue()[:900])
    photo(64, 64).save(whole := io.BytesIO(), "png")
    cut_png = tmp_path / "cut.png"
    cut_png.write_bytes(whole.getvalue()[:900])
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for file, words in ((tmp_path / "none.jpg", "no such file"), (tmp_path, "folder"), (text, "not an image"),
                        (cut, "truncated"), (cut_png, "cannot be opened"), (empty, "not an image")):
        for given in (file, str(file)):
            with pytest.raises(InputError, match=words) as raised:
                open_photo(given)
            assert str(file) in str(raised.value) and "\n" not in str(raised.value)
            assert raised.value.source == str(file)


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, photo(40, 40), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="bomb.png.*decompression bomb"):
        open_photo(file)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    whole = write(tmp_path, photo(64, 64), "a.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:900])
    before = len(os.listdir("/proc/self/fd"))
    kept = [open_photo(whole) for _ in range(3)]
    raised = []
    for _ in range(3):
        with pytest.raises(InputError) as error:
            open_photo(cut)
        raised.append(error)
    assert len(os.listdir("/proc/self/fd")) == before and len(kept) == len(raised)


def test_things_that_are_no_photo() -> None:
    with pytest.raises(InputError, match="ndarray"):
        open_photo(noise(3, 3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"photos\[1\].*NoneType"):
        batch([photo(3, 3), None], PLAIN, 16)  # type: ignore[list-item]
    with pytest.raises(InputError, match="no pixels"):
        open_photo(Image.new("RGB", (0, 4)))
    with pytest.raises(InputError, match="a list"):
        batch("photo.jpg", PLAIN, 16)
    with pytest.raises(InputError, match="empty"):
        batch([], PLAIN, 16)


def test_a_strip_that_would_fill_the_memory() -> None:
    with pytest.raises(InputError, match="1 x 9000"):
        to_tensor(Image.new("RGB", (9000, 1)), IMAGENET, 16)


# ---- batches

def test_batch_is_one_by_one() -> None:
    photos = [photo(*shape, seed) for seed, shape in enumerate(SHAPES[:4])]
    tensors, geometries = batch(photos, IMAGENET, (16, 32))
    assert tensors.shape == (4, 3, 224, 224)
    for image, tensor, geometry in zip(photos, tensors, geometries):
        alone, expected = to_tensor(image, IMAGENET, (16, 32))
        assert torch.equal(tensor, alone) and geometry == expected
        assert geometry.grid == (14, 7) and geometry.content is None


def test_long_side_as_catr_resizes() -> None:
    preprocessing = Preprocessing(size=(299, 299), mean=(0.5,) * 3, std=(0.5,) * 3, mode="long")
    for height, width in ((480, 641), (500, 333), (299, 100), (77, 77), (1, 1000)):
        image = photo(height, width)
        tensor, geometry = to_tensor(image, preprocessing, 32)
        scale = 299 / max(height, width)
        expected_size = max(1, int(width * scale)), max(1, int(height * scale))
        assert max(expected_size) == 299  # holds for these; CATR's floats lose a pixel of some widths, as 550
        pixels = np.asarray(image.resize(expected_size), dtype=np.float32)  # Pillow's default filter
        expected = torch.from_numpy(pixels).permute(2, 0, 1).div(255).sub(0.5).div(0.5)
        assert torch.equal(tensor, expected)
        assert geometry.size == geometry.content == geometry.resized == tensor.shape[1:]
        assert geometry.window == (0, 0, height, width)
    assert max(to_tensor(photo(550, 30), preprocessing, 32)[1].size) == 299


def test_long_batch_is_padded_after_normalisation() -> None:
    preprocessing = Preprocessing(size=(96, 96), mean=(0.5,) * 3, std=(0.25,) * 3, mode="long")
    photos = [photo(120, 90, 1), photo(60, 100, 2), photo(50, 51, 3)]
    tensors, geometries = batch(photos, preprocessing, 32)
    assert tensors.shape == (3, 3, 96, 96)
    for image, tensor, geometry in zip(photos, tensors, geometries):
        alone, single = to_tensor(image, preprocessing, 32)
        height, width = alone.shape[1:]
        assert torch.equal(tensor[:, :height, :width], alone)
        assert not tensor[:, height:].any() and not tensor[:, :, width:].any()
        assert geometry.content == (height, width) and geometry.size == (96, 96)
        assert geometry.window == single.window
    assert geometries[1].valid.tolist() == [[True] * 3, [True] * 3, [False] * 3]  # 57 x 96


def test_the_mask_of_a_padded_batch() -> None:
    preprocessing = Preprocessing(size=(96, 96), mean=(0.5,) * 3, std=(0.25,) * 3, mode="long")
    tensors, geometries = batch([photo(120, 90, 1), photo(60, 100, 2), photo(50, 51, 3)], preprocessing, 32)
    mask = image_mask(geometries)
    assert mask.dtype == torch.bool and torch.equal(mask, (tensors != 0).any(1))  # mean 0.5 is no 8-bit value
    assert not mask[0].all() and not mask[1].all() and mask[1].sum() == 57 * 96
    alone = to_tensor(photo(60, 100), preprocessing, 32)[1]
    assert image_mask([alone]).shape == (1, 57, 96) and image_mask([alone]).all()
    assert image_mask(batch([photo(9, 9)] * 2, IMAGENET, 16)[1]).all()  # nothing but long pads a batch
    with pytest.raises(InputError, match=r"of one size \(there are: \(57, 96\) and \(96, 96\)\)"):
        image_mask([alone, geometries[0]])
    with pytest.raises(InputError, match="there are: none"):
        image_mask([])


# ---- settings

def test_settings_through_json() -> None:
    for settings in (IMAGENET, PLAIN, Preprocessing(size=(9, 7), mean=MEAN, std=STD, mode="squash",
                                                    interpolation="lanczos", crop_pct=1)):
        again = Preprocessing.from_dict(json.loads(json.dumps(settings.to_dict())))
        assert again == settings and hash(again) == hash(settings)


@pytest.mark.parametrize("field, value", [
    ("size", 224), ("size", [224]), ("size", [224, 0]), ("size", [224.0, 224.0]), ("size", [True, True]),
    ("mean", [0.5, 0.5]), ("mean", "abc"), ("mean", [0.5, 0.5, float("nan")]), ("mean", None),
    ("std", [0.5, 0.5, 0]), ("std", [0.5, 0.5, "1"]), ("crop_pct", 0), ("crop_pct", "0.9"),
    ("crop_pct", True), ("crop_pct", float("inf")), ("crop_pct", 1000), ("mode", "Crop"), ("mode", 3),
    ("interpolation", "cubic"), ("interpolation", ["bicubic"])])
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    values = IMAGENET.to_dict() | {field: value}
    with pytest.raises(InputError) as raised:
        Preprocessing.from_dict(values, source="model.safetensors")
    assert str(raised.value).startswith(f"model.safetensors: preprocessing {field} is ")
    assert repr(value) in str(raised.value) and raised.value.source == "model.safetensors"
    with pytest.raises(InputError, match=field):
        Preprocessing(**values)


def test_missing_and_unknown_settings_are_named() -> None:
    values = IMAGENET.to_dict()
    del values["mean"], values["mode"]
    with pytest.raises(InputError, match="lacks mean, mode and has unknown sizes"):
        Preprocessing.from_dict(values | {"sizes": 3})
    with pytest.raises(InputError, match="list"):
        Preprocessing.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="square"):
        Preprocessing(size=(299, 224), mean=MEAN, std=STD, mode="long")


def test_a_picture_in_memory_is_called_by_the_name_it_is_given() -> None:
    thin = Image.new("RGB", (1, 5000))
    with pytest.raises(InputError, match="^scene-3: of 5000 x 1 pixels is too thin"):
        to_tensor(thin, Preprocessing((224, 224), MEAN, STD, 1.0), 16, name="scene-3")
    with pytest.raises(InputError, match="^the PIL image: "):
        to_tensor(Image.new("RGB", (1, 10 ** 6)), Preprocessing((224, 224), MEAN, STD, 1.0), 16)
