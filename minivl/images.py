"""From a photo to the model's tensor, every step remembered in a Geometry."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from .errors import InputError, some
from .files import existing_file
from .geometry import Geometry, Pair

log = logging.getLogger(__name__)

Photo = str | PathLike[str] | Image.Image
MODES = ("crop", "squash", "squash_crop", "long")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR,
              "nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
# EXIF orientation -> what makes the stored picture upright
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
         7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
# A strip of 1 x 5000 pixels whose short side is made 256 would need a gigabyte.
MAX_RESIZED_PIXELS = 2 ** 27


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its photos; travels with its weights.

    Modes (all resample with Pillow):
        crop: resize the short side to floor(size / crop_pct), the long side to int(short * ratio), then
            cut the centre, as timm and torchvision do; black where the picture is smaller. Where
            floor(size / crop_pct) is not square, the picture is resized by the one factor, sides
            rounded, with which it just covers that rectangle (timm's ``crop_mode="center"``).
        squash: resize both sides to ``size``; the aspect is lost, nothing is cut. ``crop_pct`` is unused.
        squash_crop: resize each side to floor(size / crop_pct), the aspect is lost, then cut the centre.
        long: resize the long side to ``size[0]``, truncate the other, cut nothing; pictures of one batch
            are padded at right and bottom with zeros after normalisation (as DETR and CATR want it).
            ``crop_pct`` is unused and ``size`` is square.

    Args:
        size: (H, W) of the tensor.
        mean, std: per channel (red, green, blue), of values between 0 and 1.
        crop_pct: part of the resized side that the crop keeps; above 1 pads.
        mode: "crop", "squash", "squash_crop" or "long".
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".

    Raises:
        InputError: a field of another type or out of range, by name and value.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 0.875
    mode: str = "crop"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            if not good:
                raise InputError(f"preprocessing {name} is {getattr(self, name)!r}, it must be {wanted}")

        pair = isinstance(self.size, (tuple, list)) and [type(side) for side in self.size] == [int, int]
        check("size", pair and min(self.size) > 0, "two positive whole numbers (height, width)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            check(name, isinstance(values, (tuple, list)) and len(values) == 3 and all(map(_finite, values)),
                  "three numbers (red, green, blue)")
        check("std", min(self.std) > 0, "three positive numbers")
        check("crop_pct", _finite(self.crop_pct) and 0 < self.crop_pct <= min(self.size),
              f"a number above 0 and at most {min(self.size)}")
        check("mode", self.mode in MODES, f"one of {', '.join(MODES)}")
        check("interpolation", self.interpolation in list(RESAMPLING), f"one of {', '.join(RESAMPLING)}")
        if self.mode == "long":
            check("size", self.size[0] == self.size[1], "square in mode long (the long side, twice)")
        # JSON has lists and 1 for 1.0: equal settings shall compare equal wherever they came from.
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        object.__setattr__(self, "crop_pct", float(self.crop_pct))

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON knows."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def resized(self, size: tuple[int, int]) -> Preprocessing:
        """The same for tensors of another (H, W)."""
        return replace(self, size=size)

    @classmethod
    def or_none(cls, values: Mapping[str, Any] | None) -> Preprocessing | None:
        """`from_dict`, where None stands for an unknown one."""
        return None if values is None else cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *,
                  source: str | PathLike[str] | None = None) -> Preprocessing:
        """The inverse of `to_dict`.

        Args:
            values: every field, no other.
            source: the file it came from, for the error.

        Raises:
            InputError: a field is missing, unknown, of another type or out of range; it is named.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"preprocessing is {type(values).__name__}, it must be an object", source=source)
        known = [field.name for field in fields(cls)]
        missing = [name for name in known if name not in values]
        unknown = [name for name in values if name not in known]
        if missing or unknown:
            wrong = [f"{what} {some(names)}"
                     for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
            raise InputError(f"preprocessing {' and '.join(wrong)} (its fields: {', '.join(known)})",
                             source=source)
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(str(error), source=source) from None


def open_photo(photo: Photo) -> Image.Image:
    """A photo as it is displayed: turned by its EXIF orientation, in RGB.

    Transparency is laid on white. 16-bit grey is scaled to 8 bits; grey kept as 32-bit whole numbers or
    floats must be in 0..255 or 0..65535 (floats also 0..1). Of several frames the first is taken.

    Args:
        photo: a file or a PIL image, which is left as it is.

    Returns:
        A new RGB image; no file stays open.

    Raises:
        InputError: no such file, a folder, not an image, cut short, or far too large (Pillow's guard
            against decompression bombs); the file is named.
    """
    return _open(photo, "the PIL image")


def to_tensor(photo: Photo, preprocessing: Preprocessing, patch: int | Pair, *,
              name: str = "the PIL image") -> tuple[Tensor, Geometry]:
    """One photo as a normalised tensor.

    Args:
        photo: a file or a PIL image, opened by `open_photo`.
        preprocessing: what the model wants.
        patch: height and width of a cell of the model's grid, in tensor pixels.
        name: what an error calls a PIL image that came from no file.

    Returns:
        ``(tensor (3, H, W) float32, geometry)``.

    Raises:
        InputError: the photo cannot be opened, or is so thin that resizing it would fill the memory.
    """
    return _tensor(photo, name, preprocessing, patch)


def batch(photos: Iterable[Photo], preprocessing: Preprocessing,
          patch: int | Pair) -> tuple[Tensor, list[Geometry]]:
    """Photos as one batch.

    Args:
        photos: files or PIL images.
        preprocessing: what the model wants.
        patch: height and width of a cell of the model's grid, in tensor pixels.

    Returns:
        ``(tensor (B, 3, H, W) float32, geometries)``. In mode "long" H and W are the largest of the batch,
        the rest is zero, and every geometry carries ``content``.

    Raises:
        InputError: as `to_tensor`, naming the file or the place in the list; no photos at all.
    """
    if isinstance(photos, (str, PathLike, Image.Image)):
        raise InputError(f"photos is one {type(photos).__name__}, it must be a list of files or PIL images")
    made = [_tensor(photo, f"photos[{place}]", preprocessing, patch) for place, photo in enumerate(photos)]
    if not made:
        raise InputError("photos is empty, at least one file or PIL image is needed")
    size = (max(geometry.size[0] for _, geometry in made), max(geometry.size[1] for _, geometry in made))
    tensors = torch.zeros(len(made), 3, *size)  # (B, 3, H, W)
    for row, (tensor, geometry) in zip(tensors, made):
        row[:, :geometry.size[0], :geometry.size[1]] = tensor
    if preprocessing.mode == "long":
        return tensors, [geometry.padded(size) for _, geometry in made]
    return tensors, [geometry for _, geometry in made]


def image_mask(geometries: Sequence[Geometry]) -> Tensor:
    """Where the images of a batch are picture, for models that see padding (CATR).

    Args:
        geometries: of the batch, as `batch` and `preprocess` give them.

    Returns:
        (B, H, W) boolean, True = picture, False = padded to the largest of the batch.

    Raises:
        InputError: no geometries, or tensors of several sizes, which are no batch.
    """
    sizes = {geometry.size for geometry in geometries}
    if len(sizes) != 1:
        found = " and ".join(map(str, sorted(sizes))) or "none"
        raise InputError(f"geometries: give those of one batch, whose tensors are of one size (there are: {found})")
    mask = torch.zeros(len(geometries), *sizes.pop(), dtype=torch.bool)  # (B, H, W)
    for row, geometry in zip(mask, geometries):
        height, width = geometry.content or geometry.size
        row[:height, :width] = True
    return mask


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _open(photo: Photo, name: str) -> Image.Image:
    """`open_photo`; ``name`` stands for a PIL image that came from no file."""
    if isinstance(photo, Image.Image):
        name = str(getattr(photo, "filename", "") or name)
    elif isinstance(photo, (str, PathLike)):
        name = str(existing_file(photo))
    else:
        raise InputError(f"is {type(photo).__name__}, a file or a PIL image is needed", source=name)
    try:
        if isinstance(photo, Image.Image):
            return _displayed(photo, name)
        with Image.open(photo) as image:
            return _displayed(image, name)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError("is not an image (or of a format that Pillow does not read)", source=name) from None
    except Exception as error:  # broken files make Pillow's decoders raise nearly every type there is
        reason = str(error) or type(error).__name__
        raise InputError(f"cannot be opened as an image ({reason})", source=name) from error


def _displayed(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"has no pixels ({image.height} x {image.width})", source=name)
    image.load()  # first: some formats turn themselves while they load, and then say so
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # EXIF is as broken as anything else in a file, but the picture is whole
        log.warning("%s: its EXIF data cannot be read (%s); taken as upright", name, error)
        turn = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = Image.fromarray(_eight_bits(image, name)).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}  # still holds the EXIF data: opened again, the photo would be turned again
    return rgb


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    """Grey of more than 8 bits as (H, W) uint8, 65535 becoming 255."""
    grey = np.asarray(image)
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= 65535):  # also where one is nan
        raise InputError(f"has grey values from {low:g} to {high:g}, they must lie within 0..255 or 0..65535",
                         source=name)
    if image.mode == "F":
        # No file format says what a float means: 1, 255 and 65535 are the whites in use.
        white = 1 if high <= 1 else 255 if high <= 255 else 65535
        return (grey.astype(np.float64) * (255 / white)).round().astype(np.uint8)
    # Pillow opens 16-bit files of some formats as "I", but also makes "I" from 8-bit pictures in memory.
    if image.mode == "I" and high <= 255 and image.format is None:
        return grey.astype(np.uint8)
    return ((grey.astype(np.int64) + 128) // 257).astype(np.uint8)


def _resized(source: Pair, preprocessing: Preprocessing) -> Pair:
    """(H, W) that a photo of ``source`` (H, W) pixels is resized to."""
    if preprocessing.mode == "squash":
        return preprocessing.size
    if preprocessing.mode == "squash_crop":
        height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
        return height, width
    short, long = sorted(source)
    if preprocessing.mode == "long":
        new_long = preprocessing.size[0]
        new_short = new_long if short == long else max(1, int(short * (new_long / long)))
    else:
        covered = [math.floor(side / preprocessing.crop_pct) for side in preprocessing.size]
        if covered[0] != covered[1]:
            ratio = min(source[0] / covered[0], source[1] / covered[1])
            return round(source[0] / ratio), round(source[1] / ratio)
        new_short, new_long = covered[0], int(covered[0] * long / short)
    return (new_short, new_long) if source[0] <= source[1] else (new_long, new_short)


def _offset(resized: int, size: int) -> int:
    """Where a centre crop begins; negative where it pads. The rounding is torchvision's CenterCrop."""
    return -((size - resized) // 2) if size > resized else int(round((resized - size) / 2.0))


def _tensor(photo: Photo, name: str, preprocessing: Preprocessing,
            patch: int | Pair) -> tuple[Tensor, Geometry]:
    image = _open(photo, name)
    source = (image.height, image.width)
    resized = _resized(source, preprocessing)
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        name = name if isinstance(photo, Image.Image) else str(photo)
        raise InputError(f"of {source[0]} x {source[1]} pixels is too thin for mode {preprocessing.mode}: it "
                         f"would be resized to {resized[0]} x {resized[1]}", source=name)
    size = resized if preprocessing.mode == "long" else preprocessing.size
    crop = (_offset(resized[0], size[0]), _offset(resized[1], size[1]))
    geometry = Geometry(source=source, resized=resized, crop=crop, size=size,
                        patch=(patch, patch) if isinstance(patch, int) else patch,
                        content=size if preprocessing.mode == "long" else None)
    image = image.resize(resized[::-1], RESAMPLING[preprocessing.interpolation])
    top, left = crop
    image = image.crop((left, top, left + size[1], top + size[0]))  # Pillow fills with black outside
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W) uint8
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return pixels.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None]), geometry


def preprocess(photos: Iterable[Photo], model: Any) -> tuple[Tensor, list[Geometry]]:
    """Photos as the input of a model, with the way back to their pixels.

    Args:
        photos: paths or PIL images.
        model: anything with ``.preprocessing`` and, for the grid, ``.cell``.

    Returns:
        ``((B, 3, H, W) float32, one Geometry per photo)``.

    Raises:
        InputError: the model's preprocessing is unknown, a photo does not open, or none is given.
    """
    if model.preprocessing is None:
        raise InputError("the preprocessing of this model is unknown (neither its file nor its name told it): "
                         "set model.preprocessing = minivl.images.Preprocessing(size, mean, std, ...)")
    return batch(photos, model.preprocessing, model.cell)
