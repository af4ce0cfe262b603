"""Features by a CLIP, batch by batch, and the name that a signature gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import randomise

import minivl
from minivl.data.photos import photo_batches
from minivl.errors import InputError
from minivl.images import Preprocessing, batch
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train import clip_features
from minivl.train.clip_features import check_reads, clip_name, image_features, load_clip, text_features

WORDS = Tokenizer.train([f"word{number} again" for number in range(30)])


def clip(seed: int = 0, mean: float = 0.5) -> CLIP:
    model = CLIP(CLIPConfig(ViTConfig((8, 8), (4, 4), 12, 1, 3, 24, num_classes=7),
                            TextConfig(WORDS.vocab_size, 16, 2, 2, 24, 7, max_len=9, bos_id=WORDS.bos_id,
                                       eot_id=WORDS.eos_id)),
                 tokenizer=WORDS, preprocessing=Preprocessing((8, 8), (mean,) * 3, (0.5,) * 3))
    randomise(model, seed, 0.3)
    return model


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(7)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (*draw.integers(5, 20, 2), 3), dtype=np.uint8)).save(file)
    return files


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_come_batch_by_batch_in_their_order(workers: int, photos: list[Path]) -> None:
    settings = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    found = list(photo_batches(photos, settings, 4, 3, workers=workers))
    assert [len(images) for images in found] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(found), batch(photos, settings, 4)[0], rtol=0, atol=0)
    assert list(photo_batches([], settings, 4)) == []
    photos[4].write_text("no photo")
    with pytest.raises(InputError, match="^[^ ]*4.png: is not an image"):
        list(photo_batches(photos, settings, 4, 3, workers=workers))
    with pytest.raises(InputError, match="size=0"):
        list(photo_batches(photos, settings, 4, 0))


def test_features_are_those_of_the_model(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_features, "TOGETHER", 2)
    model, bars = clip(), []
    texts = ["word1 again", "word2", "word3 " * 40, "word2", "", *(f"word{number}" for number in range(20))]
    with torch.no_grad():
        expected = [model.encode_image(minivl.preprocess(photos, model)[0]), model.encode_text(model.tokenize(texts))]

    def progress(items: list[object], **options: object) -> list[object]:
        bars.append(options)
        return items

    found = [image_features(model, photos, progress=progress), text_features(model, texts, progress=progress)]
    for ours, theirs in zip(found, expected):
        assert ours.dtype == torch.float32 and not ours.requires_grad
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1][1], found[1][3]) and (found[1][0] - found[1][1]).abs().max() > 0.01
    # each different text once
    assert bars == [{"total": 4, "desc": "encoding photos"}, {"total": 3, "desc": "encoding texts"}]
    assert image_features(model, []).shape == text_features(model, []).shape == (0, 7)
    coarse = image_features(model, photos, precision="bf16")
    assert 0 < (coarse - expected[0]).abs().max() < 0.2


def test_features_that_are_no_numbers_name_the_photo(photos: list[Path]) -> None:
    model = clip()
    with torch.no_grad():
        model.text.embed.weight[WORDS.encode("word7")[0]] = torch.nan
    with pytest.raises(InputError, match="^'a word7': its features by this CLIP are not numbers"):
        text_features(model, ["word1", "a word7"])
    torch.nn.init.constant_(model.visual.head.weight, torch.inf)  # type: ignore[arg-type, union-attr]
    with pytest.raises(InputError, match="^[^ ]*0.png: its features by this CLIP"):
        image_features(model, photos)


def test_a_name_tells_what_decides_a_feature(tmp_path: Path) -> None:
    minivl.save(clip(), tmp_path / "best.safetensors")
    name = clip_name(load_clip(tmp_path / "best.safetensors"), tmp_path / "best.safetensors")
    assert name == clip_name(clip(), "best.safetensors") and name.startswith("best@") and name.endswith("(fp32)")
    others = {clip_name(clip(1), "best.safetensors"), clip_name(clip(mean=0.4), "best.safetensors"),
              clip_name(clip(), "best.safetensors", "bf16"), name}
    assert len(others) == 4
    hub = clip_name(clip(), "openai/clip-vit-base-patch32")
    assert hub.split("@") == ["openai/clip-vit-base-patch32", name.split("@")[1]]


def test_captions_that_it_cannot_read() -> None:
    known, strange = "again word3", "a man rides a horse along the beach, and people look at him again"
    for texts in ([known], [known, known, strange], [known, "", "  "], ["", " "], []):
        check_reads(clip(), texts, source="it")
    for texts, told in (([strange], "1 of 1 caption,"), ([known, strange], "1 of 2 captions,"),
                        (["", known, "again man", strange], "2 of 3 captions,")):
        with pytest.raises(InputError, match=f"^it: this CLIP cannot read {told} such as '") as caught:
            check_reads(clip(), texts, source="it")
        first = next(text for text in texts if "man" in text)
        shown = first if len(first) <= 60 else f"{first[:57]}..."
        assert f"such as {shown!r}: half of their words" in str(caught.value)  # the quotation is closed
    dumb = clip()
    dumb.tokenizer = None
    with pytest.raises(InputError, match="it: this CLIP has no tokenizer"):
        check_reads(dumb, [known], source="it")
