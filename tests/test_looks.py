"""Where a captioner looks when it names something: planted looks, found and scored; controls that are ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from minivl.data.scenes import Scene, Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing, preprocess
from minivl.metrics.grounding import Pointing, pointing_score
from minivl.models.captioner import Caption, Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViTConfig
from minivl.nn.record import AttnRecord, Site, filling
from minivl.text.tokenizer import Tokenizer
from minivl.train import looks

GRID = (3, 5)  # not square, so that a transposed grid shows
CELL = 16  # pixels of the photo; the tensor has half as many
FREE = (2, 4)  # a cell where nothing ever lies
NOUNS = ("star", "fish", "tree")  # each drawn in a channel of its own
LAYER, HEAD = 1, 2  # where the looks are planted
Cells = dict[str, tuple[int, int]]


def picture(cells: Cells) -> Scene:
    """Things as filled cells of a black picture, each in the channel of its noun."""
    pixels = np.zeros((GRID[0] * CELL, GRID[1] * CELL, 3), dtype=np.uint8)
    masks = {}
    for noun, (row, column) in cells.items():
        box = np.s_[row * CELL:(row + 1) * CELL, column * CELL:(column + 1) * CELL]
        pixels[..., NOUNS.index(noun)][box] = 255
        masks[noun] = np.zeros(pixels.shape[:2], dtype=bool)
        masks[noun][box] = True
    return Scene(Image.fromarray(pixels), (), masks)


class Planted(Captioner):
    """Says what it is told. One head of one layer looks at the thing in the picture it is shown, in exactly the
    rows that choose the pieces of its noun; all others look where nothing is.
    """

    told: Sequence[Caption] = ()
    asked: dict[str, Any] = {}

    def caption(self, images: Any, *, progress: Any = iter, **options: Any) -> list[Caption]:
        self.asked = options
        for _ in progress(range(0, len(images), options["batch_size"])):
            pass
        return list(self.told)

    def replay(self, images: Tensor, ids: Sequence[Caption], *,  # type: ignore[override]
               attn: AttnRecord | None = None, **_: Any) -> Tensor:
        assert attn is not None and len(images) == len(ids)
        n_layers, n_heads = self.attn_sites["cross"]
        length = max(len(caption.ids) for caption in ids)
        rows = torch.zeros(n_layers, len(ids), n_heads, length, 1 + GRID[0] * GRID[1])
        rows[..., 0] = 2.0  # the class token has most of it, and must have no say
        rows[..., 1 + FREE[0] * GRID[1] + FREE[1]] = 1.0
        for place, (image, caption) in enumerate(zip(images, ids)):
            for word in caption.words or ():
                if word.text in NOUNS:
                    # (15,), mean brightness of each cell
                    lit = image[NOUNS.index(word.text)].unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
                    self.plant(rows[:, place], range(word.start - 1, word.stop - 1), 1 + int(lit.argmax()))
        with filling(attn, {"cross": Site(n_layers, n_heads, length)}, len(ids), images.device):
            for layer in range(n_layers):
                attn.put("cross", layer, rows[layer])
        return torch.zeros(0)

    def plant(self, rows: Tensor, chose: range, key: int) -> None:
        """`rows` (layers, h, T, N) of one caption; the rows in `chose` shall look at `key`.

        Each piece looks at a place of its own more than at the thing: only their mean peaks there.
        """
        for number, row in enumerate(chose):
            rows[LAYER, HEAD, row] = 0
            rows[LAYER, HEAD, row, key] = 0.4
            if len(chose) > 1:
                rows[LAYER, HEAD, row, 1 + (key + 3 + number) % 15] = 0.6


class InTheMean(Planted):
    """Every head of the layer looks more at a place of its own than at the thing; their mean does not."""

    def plant(self, rows: Tensor, chose: range, key: int) -> None:
        rows[LAYER, :, chose] = 0
        rows[LAYER, :, chose, key] = 0.4
        for head in range(rows.shape[1]):
            rows[LAYER, head, chose, 1 + (key + 3 + head) % 15] = 0.6


def planted(captions: Sequence[str], kind: type[Planted] = Planted, **notes: Any) -> Planted:
    tokenizer = Tokenizer.train(["a star and one fish", "under the tree"], kind="bpe", vocab_size=262)
    decoder = DecoderConfig(tokenizer.vocab_size, 16, 2, 4, 32, max_len=50, pad_id=tokenizer.pad_id,
                            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    model = kind(CaptionerConfig(ViTConfig((24, 40), (8, 8), 12, 1, 2, 24, num_classes=0), decoder),
                 tokenizer=tokenizer, notes=notes,
                 preprocessing=Preprocessing((24, 40), (0.0,) * 3, (1.0,) * 3, mode="squash"))
    model.told = [said(tokenizer, caption) for caption in captions]
    return model.eval()


def said(tokenizer: Tokenizer, text: str) -> Caption:
    ids = (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)
    return Caption(ids, text, tuple(tokenizer.words(ids)), -1.0, -1.0)


CELLS: list[Cells] = [{"star": (1, 2), "fish": (0, 4)}, {"star": (0, 3), "fish": (2, 1)},
                      {"star": (2, 0), "fish": (1, 3)}, {"star": (0, 1), "fish": (2, 3)},
                      {"star": (1, 4), "fish": (0, 0)}]
SCENES = [picture(cells) for cells in CELLS]
SAID = ["a star and one fish", "one fish under a star", "a star", "the fish and the star", "a fish under the star"]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "BATCH", 2)


# -- collecting ----------------------------------------------------------------------------------------------

def test_nouns_and_their_peaks() -> None:
    model = planted(SAID)
    nouns = looks.collect(model, SCENES, model.told)
    assert [noun.scene for noun in nouns] == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    names = [word for text in SAID for word in text.split() if word in NOUNS]
    for noun, name in zip(nouns, names):
        assert noun.rows.shape == (2, 4, *GRID) and noun.rows.device.type == "cpu"
        row, column = CELLS[noun.scene][name]
        assert divmod(int(noun.rows[LAYER, HEAD].argmax()), GRID[1]) == (row, column)
        assert divmod(int(noun.rows[0, HEAD].argmax()), GRID[1]) == FREE
        assert noun.mask is SCENES[noun.scene].masks[name]
    found = looks.looks_of(nouns, len(SCENES), LAYER, [HEAD])
    row, column = CELLS[0]["star"]
    assert found[0][0][0] == ((row + 0.5) * CELL, (column + 0.5) * CELL)
    assert pointing_score(found).score == 1
    for layer, heads in ((0, [HEAD]), (LAYER, [0]), (LAYER, [3]), (LAYER, "mean"), (LAYER, [HEAD, 0, 3])):
        assert pointing_score(looks.looks_of(nouns, len(SCENES), layer, heads)).score == 0


def test_several_pieces_are_what_the_test_is_about() -> None:
    tokenizer = planted(SAID).tokenizer
    assert tokenizer is not None
    pieces = {word.text: word.stop - word.start for word in said(tokenizer, "a star and one fish").words or ()}
    assert pieces["star"] > 1 and pieces["a"] == 1


def test_the_control_sees_another_picture_and_keeps_the_masks() -> None:
    model = planted(SAID)
    own, other = (looks.collect(model, SCENES, model.told, shift) for shift in (0, 1))
    assert [noun.mask for noun in own] == [noun.mask for noun in other]  # the very same arrays
    names = [word for text in SAID for word in text.split() if word in NOUNS]
    for noun, name in zip(other, names):
        seen = CELLS[(noun.scene + 1) % len(CELLS)][name]
        assert divmod(int(noun.rows[LAYER, HEAD].argmax()), GRID[1]) == seen


def test_invented_nouns_are_misses() -> None:
    told = ["a star and a tree", *SAID[1:]]
    model = planted(told, look={"layer": LAYER, "heads": [HEAD]})
    nouns = looks.collect(model, SCENES, model.told)
    assert [noun.mask is None for noun in nouns] == [False, True, *[False] * 7]
    result = looks.measure(model, SCENES, 2)["attention"]
    assert isinstance(result, Pointing) and (result.hits, result.nouns) == (8, 9)
    assert result.per_item[0] == (1, 2)


def test_plurals_and_other_names_mean_the_same_mask() -> None:
    """What the picture shows as "star" may be called stars."""
    nouns = looks.collect(planted([]), SCENES[:1], [said(planted([]).tokenizer, "two stars")])  # type: ignore[arg-type]
    assert [noun.mask for noun in nouns] == [SCENES[0].masks["star"]]


def test_a_real_captioner() -> None:
    """Against one replay per caption, read by hand."""
    tokenizer = Tokenizer.train(["star fish tree circles house"])
    decoder = DecoderConfig(tokenizer.vocab_size, 16, 2, 2, 32, max_len=7, pad_id=tokenizer.pad_id,
                            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    model = Captioner(CaptionerConfig(ViTConfig((32, 32), (8, 8), 12, 1, 2, 24, num_classes=0), decoder),
                      tokenizer=tokenizer, preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, 1.0)).eval()
    torch.manual_seed(4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    scenes = list(Scenes(5, size=32))
    words = tokenizer.encode("star fish tree circles house")
    draw = random.Random(0)
    captions = [said(tokenizer, tokenizer.decode(draw.choices(words, k=1 + number))) for number in range(5)]
    nouns = looks.collect(model, scenes, captions)
    assert len(nouns) == 15
    for noun, (number, word) in zip(nouns, [(number, word) for number, one in enumerate(captions)
                                            for word in one.words or ()]):
        record = AttnRecord(sites=("cross",))
        images, _ = preprocess([scenes[number].image], model)
        with torch.no_grad():
            model.replay(images, [captions[number]], attn=record)
        by_hand = torch.stack([record["cross", layer][0, :, word.start - 1, 1:].reshape(2, 4, 4) for layer in (0, 1)])
        torch.testing.assert_close(noun.rows, by_hand)


def test_captions_of_scenes() -> None:
    model = planted(SAID)
    assert looks.caption_scenes(model, SCENES, 4) == model.told
    assert model.asked == {"beams": 4, "max_len": 30, "batch_size": 2}
    with pytest.raises(InputError, match="4 captions for 5 scenes"):
        looks.collect(model, SCENES, model.told[:4])
    model.tokenizer = None
    with pytest.raises(InputError, match="without a tokenizer"):
        looks.caption_scenes(model, SCENES, 1)


@pytest.mark.parametrize("max_len, expected", [(64, 30), (31, 30), (30, 29), (9, 8)])
def test_longest(max_len: int, expected: int) -> None:
    decoder = DecoderConfig(11, 16, 1, 2, 16, max_len=max_len)
    model = Captioner(CaptionerConfig(ViTConfig((8, 8), (4, 4), 12, 1, 2, 24, num_classes=0), decoder))
    assert model.longest == expected
    model.caption(torch.zeros(1, 3, 8, 8), beams=1, max_len=model.longest)


# -- choosing and measuring ----------------------------------------------------------------------------------

def test_choosing_finds_the_planted_head_or_the_mean() -> None:
    assert looks.choose_look(planted(SAID), SCENES, 1) \
        == {"layer": LAYER, "heads": [HEAD], "score": 1.0, "scenes": 5}
    model = planted(["a star"] * 5, InTheMean)
    assert looks.choose_look(model, SCENES, 1) == {"layer": LAYER, "heads": "mean", "score": 1.0, "scenes": 5}


def test_nothing_named() -> None:
    silent = planted(["", "under the", "", "a", "one"], look={"layer": 0, "heads": "mean"})
    assert silent.told[0].ids == (silent.config.decoder.bos_id, silent.config.decoder.eos_id)
    assert looks.choose_look(silent, SCENES, 1) == {}
    with pytest.raises(InputError, match="no nouns in the 5 items"):
        looks.measure(silent, SCENES, 1)


def test_measuring() -> None:
    model = planted(SAID, look={"layer": LAYER, "heads": [HEAD], "score": 0.5, "scenes": 3})
    scenes = [picture(cells) for cells in [*CELLS[:4], {"star": (1, 2), "fish": (0, 4)}]]  # the last as the first
    results = looks.measure(model, scenes, 2)
    assert list(results) == ["attention", "shuffled pictures", "centre", "chance"]
    hits = {name: value.hits for name, value in results.items() if isinstance(value, Pointing)}
    # shown the first picture, the last caption points right, too; its star and the first one lie in the middle
    assert hits == {"attention": 9, "shuffled pictures": 2, "centre": 2}
    assert results["chance"] == pytest.approx(1 / 15)
    assert all(value.nouns == 9 for value in results.values() if isinstance(value, Pointing))


def test_measuring_needs_a_look_and_two_scenes() -> None:
    with pytest.raises(InputError, match="do not say which layer and heads"):
        looks.measure(planted(SAID), SCENES, 1)
    with pytest.raises(InputError, match="1 scenes: at least 2"):
        looks.measure(planted(SAID, look={"layer": 0, "heads": "mean"}), SCENES[:1], 1)


@pytest.mark.parametrize("look", [{"layer": 2, "heads": [0]}, {"layer": -1, "heads": [0]}, {"heads": [0]}, [1, 2],
                                  {"layer": 0, "heads": [4]}, {"layer": 0, "heads": []}, {"layer": 0, "heads": "all"}])
def test_a_noted_look_that_is_not_there(look: Any) -> None:
    with pytest.raises(InputError, match="^w: these weights note .* 2 layers and 4 heads"):
        looks.noted_look(planted(SAID, look=look), "w")


def test_progress() -> None:
    seen: dict[str, list[int]] = {}

    def watch(iterable: Iterable[int], *, total: int, desc: str) -> Iterable[int]:
        items = list(iterable)
        assert total == len(items) == 3
        seen.setdefault(desc, []).append(total)
        return items

    looks.measure(planted(SAID, look={"layer": LAYER, "heads": [HEAD]}), SCENES, 1, progress=watch)
    assert seen == {"captioning": [3], "replaying": [3, 3]}
    looks.choose_look(planted(SAID), SCENES, 1, progress=watch)
    assert seen == {"captioning": [3, 3], "replaying": [3, 3, 3]}


def test_the_library_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    looks.measure(planted(SAID, look={"layer": LAYER, "heads": [HEAD]}), SCENES, 1)
    assert capsys.readouterr() == ("", "")
