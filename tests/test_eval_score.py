"""eval.score: the numbers are the library's, every image's is kept, ids are checked, and a mistake is one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import randomise

import minivl
from eval import score
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.bleu import bleu
from minivl.metrics.cider import cider
from minivl.metrics.clipscore import PRESETS, clip_score, ref_clip_score
from minivl.metrics.compare import compare
from minivl.metrics.diversity import distinct
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.rouge import rouge
from minivl.metrics.score import Score
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
COUNT = 40
SCENES = list(Scenes(COUNT, size=32))
WORDS = Tokenizer.train([text for scene in SCENES for text in scene.captions])


def names() -> list[str]:
    return [f"{number:012d}.png" for number in random.Random(1).sample(range(10 ** 6), COUNT)]


NAMES = names()
REFERENCES = {name: list(scene.captions[1:4]) for name, scene in zip(NAMES, SCENES)}
CANDIDATES = {name: scene.captions[0] if place % 3 else SCENES[place - 1].captions[4]
              for place, (name, scene) in enumerate(zip(NAMES, SCENES))}
OTHERS = {name: scene.captions[0] if place % 2 else "a thing" for place, (name, scene) in enumerate(zip(NAMES, SCENES))}


def predictions(layout: str, captions: dict[str, str] | None = None) -> str:
    """The candidates in another order than the references."""
    shuffled = random.Random(2).sample(sorted((captions or CANDIDATES).items()), len(captions or CANDIDATES))
    records = [{"image_id": int(name[:12]), "caption": text} for name, text in shuffled]
    if layout == "stems":
        return json.dumps({name[:12]: text for name, text in shuffled})
    return json.dumps(records) if layout == "coco" else "".join(json.dumps(one) + "\n" for one in records)


def references(layout: str) -> tuple[str, list[str]]:
    """A file's text, and options."""
    if layout == "coco":
        return json.dumps({"images": [{"id": int(name[:12]), "file_name": name} for name in NAMES],
                           "annotations": [{"image_id": int(name[:12]), "caption": text}
                                           for name in NAMES for text in REFERENCES[name]]}), []
    if layout == "karpathy":
        images = [{"filename": name, "filepath": "val2014", "cocoid": int(name[:12]), "split": "test",
                   "sentences": [{"raw": text} for text in REFERENCES[name]]} for name in NAMES]
        return json.dumps({"images": [*images, {**images[0], "filename": "x.png", "cocoid": 5, "split": "val"}]}), [
            "--split", "test"]
    if layout == "stems":
        return json.dumps({name[:12]: REFERENCES[name] for name in NAMES}), []
    return "".join(f"{name}#{place}\t{text}\n" for name in NAMES for place, text in enumerate(REFERENCES[name])), []


@dataclass
class Place:
    """A folder with predictions, references, photos and a CLIP."""

    folder: Path

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def run(self, *options: object, pred: str = "pred.json", refs: str | None = "refs.json") -> None:
        given = [] if refs is None else ["--references", self.folder / refs]
        score.main([str(one) for one in ("--predictions", self.folder / pred, *given, *options)])

    def saved(self, *options: object, **files: Any) -> dict[str, Any]:
        """What --out writes."""
        self.run(*options, "--out", self.folder / "new" / "scores.json", **files)
        found: dict[str, Any] = json.loads((self.folder / "new" / "scores.json").read_text(encoding="utf-8"))
        return found

    def clip(self) -> list[object]:
        return ["--images", self.folder / "photos", "--clip", self.folder / "clip.safetensors"]


def clip() -> CLIP:
    model = CLIP(CLIPConfig(ViTConfig((16, 16), (8, 8), 24, 2, 3, 48, num_classes=10),
                            TextConfig(WORDS.vocab_size, 20, 2, 2, 40, 10, max_len=9, bos_id=WORDS.bos_id,
                                       eot_id=WORDS.eos_id)),
                 tokenizer=WORDS, preprocessing=Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))
    randomise(model, 1, 0.3)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    (folder / "photos").mkdir()
    for name, scene in zip(NAMES, SCENES):
        scene.image.save(folder / "photos" / name)
    minivl.save(clip(), folder / "clip.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path, photos: Path) -> Place:
    made = Place(tmp_path)
    made.write("pred.json", predictions("stems"))
    made.write("refs.json", references("coco")[0])
    for name in ("photos", "clip.safetensors"):
        (tmp_path / name).symlink_to(photos / name)
    return made


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def library() -> dict[str, Score]:
    """All scores of the candidates that need no photos."""
    whole = bleu(CANDIDATES, REFERENCES, tokenize="ptb-coco")
    return {"cider_d": cider(CANDIDATES, REFERENCES, tokenize="ptb-coco"),
            "cider": cider(CANDIDATES, REFERENCES, variant="cider", tokenize="ptb-coco"),
            **{f"bleu_{order + 1}": Score(number, {name: many[order] for name, many in whole.per_item.items()},
                                          whole.signature) for order, number in enumerate(whole.scores)},
            "rouge_l": rouge(CANDIDATES, REFERENCES, tokenize="ptb-coco")}


# -- numbers -------------------------------------------------------------------------------------------------

def test_the_numbers_are_the_librarys(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    saved = place.saved("--metrics", *score.METRICS)
    expected = library()
    assert {*saved["scores"]} == {*expected, "distinct_1", "distinct_2", "different", "vocabulary"}
    for name, one in expected.items():
        assert saved["scores"][name] == {"score": one.score, "signature": one.signature}  # to the last bit
        assert {image: row[name] for image, row in saved["per_image"].items()} == one.per_item
    assert 0.5 < expected["cider_d"].score < 8 and expected["cider"].score != expected["cider_d"].score
    in_order = json.loads(predictions("stems"))
    assert [(row["id"], row["caption"]) for row in saved["per_image"].values()] == list(in_order.items())
    assert saved["images"] == COUNT and saved["left_out"] == {} and saved["split"] == ""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{place.folder / 'pred.json'}: 40 captions, 120 references of {place.folder / 'refs.json'}"
    for label, name in (("CIDEr-D", "cider_d"), ("BLEU-4", "bleu_4"), ("ROUGE-L", "rouge_l")):
        line, = (line for line in lines if line.startswith(f"{label} "))
        assert line.split() == [label, f"{expected[name].score:.4f}", *expected[name].signature.split()]
    assert list((place.folder / "new").iterdir()) == [place.folder / "new" / "scores.json"]


@pytest.mark.parametrize("pred", ["stems", "coco", "lines"])
@pytest.mark.parametrize("refs", ["coco", "karpathy", "stems", "tokens"])
def test_layouts_agree(pred: str, refs: str, place: Place) -> None:
    text, options = references(refs)
    place.write("p", predictions(pred))
    place.write("r", text)
    saved = place.saved("--metrics", "cider-d", *options, pred="p", refs="r")
    expected = cider(CANDIDATES, REFERENCES, tokenize="ptb-coco")
    assert saved["scores"]["cider_d"]["score"] == expected.score
    assert {Path(image).stem: row["cider_d"] for image, row in saved["per_image"].items()} == {
        name[:12]: value for name, value in expected.per_item.items()}


def test_metrics_and_tokens_are_what_was_asked_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.run("--json")
    head, *told = rows(capsys)
    assert head == {"predictions": str(place.folder / "pred.json"), "references": str(place.folder / "refs.json"),
                    "captions": 40, "left_out": {}}
    asked = [row["metric"] for row in told]
    assert asked[:6] == ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"] and "cider" not in asked
    place.run("--json", "--metrics", "rouge-l", "cider-d", "--tokens", "simple")
    _, *told = rows(capsys)
    assert [(row["metric"], row["score"]) for row in told] == [
        ("cider_d", cider(CANDIDATES, REFERENCES, tokenize="simple").score),
        ("rouge_l", rouge(CANDIDATES, REFERENCES, tokenize="simple").score)]


# -- document frequencies ------------------------------------------------------------------------------------

def test_one_image_is_scored_with_document_frequencies(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    score.main(["--references", str(place.folder / "refs.json"), "--save-df",
                str(place.folder / "new" / "df.safetensors"), "--json"])  # without predictions
    df = DocFreq.from_references(REFERENCES, tokenize="ptb-coco")
    assert rows(capsys) == [{"path": str(place.folder / "new" / "df.safetensors"), "df": df.name,
                             "tokens": "ptb-coco"}]
    place.run("--save-df", place.folder / "again.safetensors", "--metrics", "rouge-l")  # and with some
    assert DocFreq.load(place.folder / "again.safetensors").name == df.name
    assert "ROUGE-L" in capsys.readouterr().out
    one = NAMES[5]
    place.write("one.json", {one: CANDIDATES[one]})
    place.write("one_refs.json", {one: REFERENCES[one]})
    files = {"pred": "one.json", "refs": "one_refs.json"}
    saved = place.saved("--df", place.folder / "new" / "df.safetensors", "--metrics", "cider-d", "cider", **files)
    for name, variant in (("cider_d", "cider-d"), ("cider", "cider")):
        expected = cider({one: CANDIDATES[one]}, {one: REFERENCES[one]}, variant=variant, df=df, tokenize="ptb-coco")
        assert saved["scores"][name] == {"score": expected.score, "signature": expected.signature}
        assert f"df:{df.name}" in expected.signature
    with pytest.raises(InputError, match=rf"one_refs.json: one image \({one}\): .* --df .*--metrics bleu rouge-l"):
        place.run(**files)
    place.run("--metrics", "bleu", "rouge-l", **files)
    with pytest.raises(InputError, match="tokens"):
        place.run("--df", place.folder / "new" / "df.safetensors", "--tokens", "simple")


# -- CLIPScore -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset", PRESETS)
def test_clip_scores_are_the_librarys(preset: str, place: Place) -> None:
    saved = place.saved(*place.clip(), "--clip-preset", preset, "--metrics", "rouge-l")
    model, prefix = clip(), PRESETS[preset].prefix
    images, _ = minivl.preprocess([place.folder / "photos" / name for name in CANDIDATES], model)
    with torch.no_grad():
        seen = dict(zip(CANDIDATES, model.encode_image(images)))
        told = dict(zip(CANDIDATES, model.encode_text(model.tokenize([prefix + text for text in CANDIDATES.values()]))))
        texts = {name: model.encode_text(model.tokenize([prefix + text for text in REFERENCES[name]]))
                 for name in CANDIDATES}
    expected = {"clip_score": clip_score(seen, told, preset=preset, model="m")}
    if PRESETS[preset].reference:
        expected["ref_clip_score"] = ref_clip_score(seen, told, texts, preset=preset, model="m")
    assert {"rouge_l", *expected} == {*saved["scores"]}
    for name, one in expected.items():
        assert saved["scores"][name]["score"] == pytest.approx(one.score, abs=1e-5)
        for image, value in one.per_item.items():
            assert saved["per_image"][image][name] == pytest.approx(value, abs=1e-4)
        signature = saved["scores"][name]["signature"]
        assert f":{preset}|" in signature and "model:clip@" in signature
    assert np.std(list(expected["clip_score"].per_item.values())) > 0.01


def test_without_references_the_photos_are_enough(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    some_names = NAMES[:7]  # of the photos
    place.write("few.json", {name: CANDIDATES[name] for name in some_names})
    saved = place.saved(*place.clip(), pred="few.json", refs=None)
    whole = place.saved(*place.clip())
    assert list(saved["per_image"]) == some_names and "ref_clip_score" not in saved["scores"]
    for name in some_names:
        assert saved["per_image"][name]["clip_score"] == pytest.approx(whole["per_image"][name]["clip_score"], abs=1e-5)
    assert "7 captions of photos of" in capsys.readouterr().out


def test_a_clip_that_cannot_read_the_captions_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As train_p2.py refuses it as a reward: of unknown words it has a number, too, which says nothing."""
    refused = r"clip@[0-9a-f]{8}\(fp32\): this CLIP cannot read 40 of 40 captions, such as 'two \S+ men ride"
    strange = {name: f"two very{number} men ride along some beach" for number, name in enumerate(NAMES)}
    place.write("strange.json", strange)
    place.write("strange_refs.json", {name: [text] for name, text in strange.items()})
    with monkeypatch.context() as patch:
        patch.setattr("minivl.train.clip_judge.image_features", lambda *_, **__: pytest.fail("photos were encoded"))
        for files in ({"pred": "strange.json", "refs": None}, {"refs": "strange_refs.json"}):
            with pytest.raises(InputError, match=refused):
                place.run(*place.clip(), **files)  # type: ignore[arg-type]
    place.run(*place.clip(), pred="strange.json")  # people say other things of these photos: the captions are bad


def test_photos_are_found_by_stem_and_in_folders(place: Place) -> None:
    text, options = references("karpathy")  # val2014/name.png
    place.write("refs.json", text)
    assert len(place.saved(*place.clip(), *options, "--metrics", "rouge-l")["per_image"]) == COUNT
    place.write("refs.json", references("stems")[0])
    assert len(place.saved(*place.clip(), "--metrics", "rouge-l")["per_image"]) == COUNT


# -- ids -----------------------------------------------------------------------------------------------------

def test_what_does_not_fit_is_an_error_or_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    kept = NAMES[3:]
    wrong = {**{name: CANDIDATES[name] for name in kept}, "x.png": "a dog", "y.png": "a cat", NAMES[5][:12]: "twice",
             NAMES[4]: "  "}
    place.write("pred.json", json.dumps(wrong)[:-1] + f', "{NAMES[3]}": "again"}}')
    with pytest.raises(InputError) as caught:
        place.run()
    assert str(caught.value) == (
        f"{place.folder / 'pred.json'}: does not fit {place.folder / 'refs.json'}: images without a caption: 3 "
        f"({', '.join(map(repr, NAMES[:3]))}); captions of no image there: 2 ('x.png', 'y.png'); images with several "
        f"captions: 2 ('{NAMES[3]}', '{NAMES[5][:12]}'); empty captions: 1 ('{NAMES[4]}'); --partial scores what "
        "there is, 37 images")
    saved = place.saved("--partial", "--metrics", "cider-d", "--json")
    head = rows(capsys)[0]
    assert head["left_out"] == {"missing": 3, "extra": 2, "doubled": 2, "empty": 1} and head["captions"] == 37
    assert saved["left_out"] == {"missing": NAMES[:3], "extra": ["x.png", "y.png"],
                                 "doubled": [NAMES[3], NAMES[5][:12]], "empty": [NAMES[4]]}
    expected = cider({name: wrong[name] for name in kept}, {name: REFERENCES[name] for name in kept},
                     tokenize="ptb-coco")
    assert saved["scores"]["cider_d"] == {"score": expected.score, "signature": expected.signature}
    assert saved["per_image"][NAMES[4]]["cider_d"] == 0 and "corpus(37)" in expected.signature
    place.run("--partial", "--metrics", "cider-d")
    assert "scored with --partial; images without a caption: 3 (" in capsys.readouterr().out


# -- comparing -----------------------------------------------------------------------------------------------

def test_differences_come_from_predictions_or_from_saved_scores(place: Place,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    place.write("others.json", predictions("lines", OTHERS))
    place.saved(*place.clip(), pred="others.json")
    capsys.readouterr()
    found = []
    for other in ("others.json", "new/scores.json"):
        place.run(*place.clip(), "--json", "--compare", place.folder / other)
        found.append([row for row in rows(capsys) if "compared" in row])
    assert found[0] == found[1] and {"cider_d", "rouge_l", "clip_score", "ref_clip_score"} <= {
        row["compared"] for row in found[0]}
    row = next(row for row in found[0] if row["compared"] == "rouge_l")
    in_order = {f"{stem}.png": text for stem, text in json.loads(predictions("stems")).items()}  # as they are drawn
    expected = compare(rouge(in_order, REFERENCES, tokenize="ptb-coco"),
                       rouge(OTHERS, REFERENCES, tokenize="ptb-coco"))
    assert expected.difference > 0.05 and expected.p < 0.2
    assert row["difference"] == pytest.approx(expected.difference, abs=1e-12)
    assert row["interval"] == pytest.approx(expected.interval, abs=1e-12) and row["p"] == pytest.approx(expected.p)
    place.run("--compare", place.folder / "others.json", "--metrics", "cider", "cider-d", "rouge-l", "bleu")
    lines = capsys.readouterr().out.split(" less ")[1].splitlines()
    assert lines[0] == f"{place.folder / 'others.json'}: difference, 95 % interval over images, p"
    low, high = expected.interval
    assert f"ROUGE-L {expected.difference:+.4f} {low:+.4f} to {high:+.4f} p {expected.p:.4f}" in map(
        lambda line: " ".join(line.split()), lines)
    assert sum("no interval: of all captions together" in line for line in lines) == 4  # BLEU
    place.run("--compare", place.folder / "new" / "scores.json", "--metrics", "cider")
    assert f"CIDEr not in {place.folder / 'new/scores.json'}" in " ".join(capsys.readouterr().out.split())


def test_one_image_has_a_difference_but_no_interval(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("refs.json", {NAMES[0]: REFERENCES[NAMES[0]]})
    place.write("pred.json", {NAMES[0]: REFERENCES[NAMES[0]][0]})
    place.write("other.json", {NAMES[0]: "a thing"})
    place.run("--metrics", "rouge-l", "--compare", place.folder / "other.json")
    head, *_, line = capsys.readouterr().out.splitlines()
    assert head == f"{place.folder / 'pred.json'}: 1 caption, 3 references of {place.folder / 'refs.json'}"
    assert line.startswith("ROUGE-L ") and "+" in line and "no interval: " in line and "at least 2 are needed" in line


def test_what_is_new_is_told_from_what_was_trained_on(place: Place) -> None:
    known = list(CANDIDATES.values())[:10]
    place.write("trained.json", {"images": [{"filename": "x.jpg", "split": "train", "sentences": [
        {"raw": f"{text.upper()} ."} for text in known]}]})
    saved = place.saved("--training", place.folder / "trained.json", "--training-split", "train")
    new = [text not in known for text in CANDIDATES.values()]
    assert saved["scores"]["novel"]["score"] == pytest.approx(np.mean(new)) and 0.3 < np.mean(new) < 0.9
    assert saved["scores"]["different"]["score"] == len({*CANDIDATES.values()})
    assert "novel" not in place.saved()["scores"]


@pytest.mark.parametrize("layout", ["stems", "coco", "lines"])
def test_diversity_needs_captions_alone(layout: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("pred.json", predictions(layout))
    known = list(CANDIDATES.values())[:10]
    training = ["--training", place.write("trained.json", {"x": known})]
    for options, trained in ((["--metrics", "diversity"], None), (training, {"x": known})):
        saved = place.saved(*options, refs=None)
        expected = distinct(CANDIDATES, trained, tokenize="ptb-coco")
        assert {name: one["score"] for name, one in saved["scores"].items()} == {
            name: getattr(expected, name) for name in ("distinct_1", "distinct_2", "different", "vocabulary",
                                                       *["novel"] * bool(trained))}
        head, *lines = capsys.readouterr().out.splitlines()
        assert head == f"{place.folder / 'pred.json'}: 40 captions" and len(lines) == len(saved["scores"]) + 1
        assert saved["references"] == "" and saved["images"] == COUNT
        texts = [(str(row["id"]), row["caption"]) for row in saved["per_image"].values()]
        assert [text for _, text in texts] == list(json.loads(predictions("stems")).values())
        assert [*saved["per_image"]] == [id for id, _ in texts]


def test_diversity_alone_compares_captions_of_the_same_ids(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("others.json", OTHERS)  # by file name, where ours are by stem
    for other in ("others.json", "new/scores.json"):
        place.run("--metrics", "diversity", "--json", "--compare", place.folder / other, refs=None)
        difference, = (row["difference"] for row in rows(capsys) if row.get("compared") == "different")
        assert difference == len({*CANDIDATES.values()}) - len({*OTHERS.values()})
        place.saved("--metrics", "diversity", pred="others.json", refs=None)  # by file name: of other ids than ours
        saved = json.loads((place.folder / "new" / "scores.json").read_text())
        saved["per_image"] = {name[:12]: row for name, row in saved["per_image"].items()}
        place.write("new/scores.json", saved)
        capsys.readouterr()
    few = place.write("few.json", {**{name: OTHERS[name] for name in NAMES[:9]}, "x": "a dog"})
    with pytest.raises(InputError, match="few.json: does not fit .*pred.json: images without a caption: 31 .*"
                                         r"of no image there: 1 \('x'\)"):
        place.run("--metrics", "diversity", "--compare", few, refs=None)
    place.run("--metrics", "diversity", "--compare", few, "--partial", refs=None)
    assert "pred.json: 9 captions\n" in capsys.readouterr().out
    place.write("pred.json", '{"a": "a dog", "b": " ", "a": "two dogs"}')
    with pytest.raises(InputError, match=r"pred.json: does not have one caption of each image: images with several "
                                         r"captions: 1 \('a'\); empty captions: 1 \('b'\); --partial .* 2 images"):
        place.run("--metrics", "diversity", refs=None)
    place.run("--metrics", "diversity", "--partial", refs=None)


def test_photos_alone_are_compared_of_the_same_images(place: Place) -> None:
    """Of the photos that have a caption here, each needs one there."""
    few = place.write("few.json", {name: REFERENCES[name][0] for name in NAMES[:9]})
    with pytest.raises(InputError, match="few.json: does not fit .*pred.json: images without a caption: 31"):
        place.run(*place.clip(), "--compare", few, refs=None)
    place.run(*place.clip(), "--compare", few, "--partial", refs=None)


def test_training_captions_of_one_side_leave_out_what_needs_them(place: Place,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    training = ["--training", place.write("trained.json", {"x": [*CANDIDATES.values()][:10]})]
    options = ["--metrics", "diversity", "rouge-l", "--json", "--compare", place.folder / "new" / "scores.json"]
    for ours, theirs in ((training, []), ([], training)):
        place.saved("--metrics", "diversity", "rouge-l", *theirs)
        capsys.readouterr()
        place.run(*options, *ours)
        found = {row["compared"]: row["difference"] for row in rows(capsys) if "compared" in row}
        assert found == {"rouge_l": 0, "distinct_1": 0, "distinct_2": 0, "different": 0, "vocabulary": 0, "novel": None}
    place.saved("--metrics", "diversity", *training)
    other = ["--training", place.write("other.json", {"x": [*CANDIDATES.values()][:9]})]
    with pytest.raises(InputError, match="novel: scores of different signatures"):  # a number of another set
        place.run("--metrics", "diversity", "--compare", place.folder / "new" / "scores.json", *other)


def test_only_like_is_compared(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.saved("--tokens", "simple")
    with pytest.raises(InputError, match="scores.json.*different signatures|different signatures.*tok:simple"):
        place.run("--compare", place.folder / "new" / "scores.json")
    place.write("few.json", {name: CANDIDATES[name] for name in NAMES[:9]})
    with pytest.raises(InputError, match="few.json: does not fit"):
        place.run("--compare", place.folder / "few.json")
    place.run("--compare", place.folder / "few.json", "--partial")
    told = capsys.readouterr().out
    assert "pred.json: 9 captions" in told and "of the other, with --partial; images without a caption: 31" in told
    place.saved("--partial", pred="few.json")
    with pytest.raises(InputError, match="scores.json: is of 9 images, not of these 40; on one side only: "):
        place.run("--compare", place.folder / "new" / "scores.json")


@pytest.mark.parametrize("key", ["per_image", "scores"])
def test_damaged_scores_are_one_line(key: str, place: Place) -> None:
    saved = place.saved()
    for wrong in ({**saved, key: 5}, {name: value for name, value in saved.items() if name != key}):
        path = place.write("damaged.json", wrong)
        with pytest.raises(InputError, match="damaged.json: is damaged"):
            place.run("--compare", path)


@pytest.mark.parametrize("wrong, words", [
    (None, "cider_d is missing of 1 images"), (True, "is True, no number"), ("3", "is '3', no number"),
    (float("nan"), "is nan, no number"), (9.5, "is the mean of its images'")])
def test_a_damaged_number_is_told(wrong: Any, words: str, place: Place) -> None:
    saved = place.saved()
    of_image = saved["per_image"][NAMES[3]]
    of_image.pop("cider_d")
    if wrong is not None:
        of_image["cider_d"] = wrong
    with pytest.raises(InputError, match=f"damaged.json: is damaged: .*{words}"):
        place.run("--compare", place.write("damaged.json", saved))
    with pytest.raises(InputError, match="other.json: was written by another version"):
        place.run("--compare", place.write("other.json", {**saved, "format": "minivl caption scores 9"}))


def test_numbers_of_one_side_only_are_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.saved("--metrics", "rouge-l", "bleu")
    capsys.readouterr()
    place.run("--metrics", "rouge-l", "cider-d", "--compare", place.folder / "new" / "scores.json")
    told = capsys.readouterr().out
    path = place.folder / "new" / "scores.json"
    assert f"BLEU-4       only in {path}" in told and f"CIDEr-D      not in {path}" in told


# -- mistakes ------------------------------------------------------------------------------------------------

LONG = {NAMES[0]: "word " * 10_000, **{name: "a dog" for name in NAMES[1:]}}


@pytest.mark.parametrize("content, words", [
    ({NAMES[0]: ""}, "empty captions: 1"), (LONG, "has 10000 words, more than 1000"),
    ({NAMES[0]: 5}, "is a number, a string"), (["a dog", "a cat"], "entry 0 is the string 'a dog'"),
    ("{\"a\": \"dog\",\n  \"b\" }", "is not JSON: .* at line 2 column 7"),
    ({"u": "a", "v": "b", "w": "c", "x": "d"}, r"no id of .*pred.json \('u', 'v', 'w' and 1 more\) is an image of "),
    ('{"%s": "a", "%s": "a"}' % (NAMES[0], NAMES[0]), "images with several captions: 1"), ({}, "has no captions"),
])
def test_wrong_predictions(content: Any, words: str, place: Place) -> None:
    place.write("pred.json", content)
    with pytest.raises(InputError, match=words) as caught:
        place.run("--out", place.folder / "scores.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert not (place.folder / "scores.json").exists()


@pytest.mark.parametrize("content, words", [
    ({NAMES[0]: []}, "has no caption"), ({NAMES[0]: ["a", ""]}, "is empty"), ({NAMES[0]: ["a", 3]}, "a string is"),
    ({NAMES[0]: "a dog"}, "a list of captions is needed"), ("{", "is not JSON"), ({}, "images"),
    ('{"a": ["b"], "a": ["c"]}', "has 'a' twice"),
])
def test_wrong_references(content: Any, words: str, place: Place) -> None:
    place.write("refs.json", content)
    with pytest.raises(InputError, match=words) as caught:
        place.run("--partial")
    assert str(place.folder / "refs.json") in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_that_does_not_open_or_is_not_there(place: Place) -> None:
    (place.folder / "own").mkdir()
    for name in NAMES:
        (place.folder / "own" / name).write_bytes((place.folder / "photos" / name).read_bytes())
    options = ["--images", place.folder / "own", "--clip", place.folder / "clip.safetensors"]
    (place.folder / "own" / NAMES[7]).write_text("no photo")
    with pytest.raises(InputError, match=f"{NAMES[7]}: is not an image"):
        place.run(*options)
    (place.folder / "own" / NAMES[7]).unlink()
    with pytest.raises(InputError, match=f"own: 1 of the 40 images of .*refs.json .* not there: '{NAMES[7]}'"):
        place.run(*options)


@pytest.mark.parametrize("options, words", [
    (["--images", "photos"], "--images needs --clip"), (["--clip", "clip.safetensors"], "--clip needs --images"),
    (["--clip-preset", "course"], "--clip-preset needs --clip"), (["--training-split", "x"], "needs --training"),
    (["--df", "df", "--metrics", "bleu"], "--df: no CIDEr"), (["--split", "val"], "the file has no splits"),
    (["--training", "refs.json", "--metrics", "bleu"], "--training: diversity is not asked"),
    (["--out", "scores.txt"], "--out scores.txt: a .json file is written"), (["--out", "."], "--out .: a .json"),
    (["--out", "pred.json"], "--out pred.json: it would replace what is read"),
    (["--out", "refs.json/scores.json"], "refs.json is a file, no folder"), (["--seed", -1], "--seed -1"),
    (["--save-df", "df.json"], "--save-df df.json: a .safetensors file"), (["--df", "none"], "none: no such file"),
    (["--df", "clip.safetensors"], "clip.safetensors: holds no document frequencies"),
    (["--compare", "none.json"], "none.json: no such file"),
    (["--images", "photos", "--clip", "df.safetensors"], "df.safetensors"),
])
def test_wrong_options(options: list[object], words: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    before = sorted(Path().iterdir())
    with pytest.raises(InputError, match=words) as caught:
        score.main(["--predictions", "pred.json", "--references", "refs.json", *map(str, options)])
    assert "\n" not in str(caught.value) and sorted(Path().iterdir()) == before


@pytest.mark.parametrize("options, words", [
    ([], "--predictions is missing"), (["--out", "x.json"], "--out needs --predictions"),
    (["--compare", "x.json"], "--compare needs --predictions"), (["--df", "x"], "--df needs --predictions"),
    (["--training", "x"], "--training needs --predictions"),
    (["--images", "x", "--clip", "y"], "--clip needs --predictions")])
def test_options_that_need_predictions(options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        score.main(["--references", "refs.json", *options])


@pytest.mark.parametrize("options, words", [
    ([], "--references is missing"), (["--df", "x"], "--df needs --references"), (["--split", "x"], "--split needs"),
    (["--save-df", "x.safetensors"], "--save-df needs"), (["--metrics", "bleu"], "--metrics needs --references"),
    (["--metrics", "diversity", "rouge-l", "cider"], "--metrics needs --references for rouge-l, cider: ")])
def test_options_that_need_references(options: list[str], words: str, place: Place) -> None:
    with pytest.raises(InputError, match=words):
        place.run(*options, refs=None)


def test_a_mistake_is_one_line_and_code_2(place: Place) -> None:
    place.write("pred.json", "{\n")
    line = [sys.executable, "-m", "eval.score", "--predictions", str(place.folder / "pred.json"), "--references",
            str(place.folder / "refs.json")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith(f"error: {place.folder / 'pred.json'}: is not JSON: ")
    assert done.stderr.count("\n") == 1


def test_a_failed_write_leaves_the_old_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.saved()
    before = (place.folder / "new" / "scores.json").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        place.saved("--metrics", "rouge-l")
    monkeypatch.undo()
    assert (place.folder / "new" / "scores.json").read_bytes() == before
    assert len(list((place.folder / "new").iterdir())) == 1
