"""Caption files: the three formats, their spellings, and one clear line for each fault."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from minivl.data.captions import CaptionSet, read_captions
from minivl.errors import InputError

COCO: dict[str, Any] = {
    "info": {"year": 2014},
    "images": [{"id": 30, "file_name": "c.jpg"}, {"id": 7, "file_name": "sub/a.jpg"},
               {"id": 11, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog"},
        {"id": 2, "image_id": 30, "caption": "A cat\nsits ."},
        {"id": 3, "image_id": 11, "caption": "über {'ü'}"},
        {"id": 5, "image_id": 7, "caption": "the dog\u2028runs"},
    ],
}
KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {"filename": f"{index}.jpg", "filepath": "val2014/" if index % 2 else "train2014", "split": split,
         "cocoid": 1000 + index, "imgid": index,
         "sentences": [{"raw": f"Caption {index} {place}.", "tokens": ["wrong"]}
                       for place in range(index % 3 + 1)]}
        for index, split in enumerate(["test", "train", "restval", "val", "train", "test"])],
}


def write(folder: Path, content: Any, name: str = "captions.json") -> Path:
    file = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(text.encode("utf-8"))  # not write_text, which may change the ends of lines
    return file


def test_coco(tmp_path: Path) -> None:
    read = read_captions(write(tmp_path, COCO))
    assert read.images == ("c.jpg", "sub/a.jpg", "b.jpg")  # the file's order, not the annotations'
    assert read.captions == {"c.jpg": ("A cat\nsits .",), "sub/a.jpg": ("a dog", "the dog\u2028runs"),
                             "b.jpg": ("über {'ü'}",)}
    assert read.ids == {"c.jpg": 30, "sub/a.jpg": 7, "b.jpg": 11}
    assert len(read) == 3 and read.split == "" and read.source == str(tmp_path / "captions.json")
    assert read.references()["sub/a.jpg"] == ["a dog", "the dog\u2028runs"]
    assert list(read.references()) == list(read.images)


def test_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    assert read_captions(write(tmp_path, "\ufeff\n " + json.dumps(COCO), "captions.txt")).ids["b.jpg"] == 11
    assert read_captions(write(tmp_path, KARPATHY, "x"), split="val").images == ("val2014/3.jpg",)


@pytest.mark.parametrize("split, images", [
    ("train", ["val2014/1.jpg", "train2014/4.jpg"]),
    ("restval", ["train2014/2.jpg"]),
    ("train+restval", ["val2014/1.jpg", "train2014/2.jpg", "train2014/4.jpg"]),
    ("test", ["train2014/0.jpg", "val2014/5.jpg"]),
])
def test_karpathy(tmp_path: Path, split: str, images: list[str]) -> None:
    read = read_captions(write(tmp_path, KARPATHY), split=split)
    assert list(read.images) == list(read.captions) == list(read.ids) == images
    for image in images:
        index = int(image.split("/")[1][0])
        assert read.captions[image] == tuple(f"Caption {index} {place}." for place in range(index % 3 + 1))
        assert read.ids[image] == 1000 + index
    assert read.split == split


def test_karpathy_of_flickr(tmp_path: Path) -> None:
    """No folder, no cocoid; one split only, or none, need not be named."""
    data = copy.deepcopy(KARPATHY)
    for image in data["images"]:
        del image["filepath"], image["cocoid"]
        image["split"] = "val"
    read = read_captions(write(tmp_path, data))
    assert read.images == tuple(f"{index}.jpg" for index in range(6)) and read.ids["4.jpg"] == 4
    assert read.split == "val"
    for image in data["images"]:
        del image["split"], image["imgid"]
    assert read_captions(write(tmp_path, data)).ids["4.jpg"] == "4.jpg"


def test_captions_by_name(tmp_path: Path) -> None:
    """As course work keeps them: file names or stems, each with a list."""
    read = read_captions(write(tmp_path, {"b": ["A dog .", "dogs"], "sub/a.jpg": ["a\u2028cat"]}))
    assert read.images == ("b", "sub/a.jpg") and read.ids == {"b": "b", "sub/a.jpg": "sub/a.jpg"}
    assert read.captions == {"b": ("A dog .", "dogs"), "sub/a.jpg": ("a\u2028cat",)}


def test_karpathy_splits_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, KARPATHY)
    listing = r"test \(2 images\), train \(2 images\), restval \(1 images\), val \(1 images\)"
    for split in (None, "dev", "train+dev", ""):
        with pytest.raises(InputError, match=listing) as caught:
            read_captions(file, split=split)
        assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="split='train' was asked for, but the file has no splits"):
        read_captions(write(tmp_path, COCO), split="train")
    with pytest.raises(InputError, match="no splits"):
        read_captions(write(tmp_path, "a.jpg#0\ta dog\n", "a.token"), split="train")


TOKENS = "b.jpg#0\tA dog , running .\nb.jpg#1\tTwo #1 dogs\n\na.jpg.1#0\tüber\u2028x\nb.jpg#4\ta, \"b\" | c\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_flickr_tokens(tmp_path: Path, end: str) -> None:
    read = read_captions(write(tmp_path, TOKENS.replace("\n", end), "Flickr8k.token.txt"))
    assert read.images == ("b.jpg", "a.jpg.1")
    assert read.captions == {"b.jpg": ("A dog , running .", "Two #1 dogs", 'a, "b" | c'),
                             "a.jpg.1": ("über\u2028x",)}
    assert read.ids == {"b.jpg": "b.jpg", "a.jpg.1": "a.jpg.1"}


@pytest.mark.parametrize("text", [
    'image,caption\nb.jpg,A dog .\nb.jpg,"Black, ""big"" dog"\na.jpg,one, two\n\n',
    'Image, Caption\r\nb.jpg,A dog .\r\nb.jpg,"Black, ""big"" dog"\r\na.jpg,"one, two"',
    'image_name| comment_number| comment\nb.jpg| 0| A dog .\nb.jpg| 1| Black, "big" dog\n'
    'a.jpg| 4   one, two\n',
    'image_name|comment_number|comment\r\nb.jpg|0|A dog .\r\nb.jpg|1|Black, "big" dog\r\n'
    'a.jpg| 4| one, two\r\n',
])
def test_flickr_tables(tmp_path: Path, text: str) -> None:
    read = read_captions(write(tmp_path, text, "results.csv"))
    assert read.captions == {"b.jpg": ("A dog .", 'Black, "big" dog'), "a.jpg": ("one, two",)}


def test_a_bar_in_a_comment_is_kept(tmp_path: Path) -> None:
    text = "image_name| comment_number| comment\na.jpg| 0| left | right\n"
    assert read_captions(write(tmp_path, text, "r.csv")).captions == {"a.jpg": ("left | right",)}


def test_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    read = read_captions(write(tmp_path, "a.jpg#0\tone\u2028two\x85three\x0bfour\na.jpg#1\tlast", "t"))
    assert read.captions == {"a.jpg": ("one\u2028two\x85three\x0bfour", "last")}


def changed(data: dict[str, Any], *path: Any, to: Any = None) -> dict[str, Any]:
    """A copy with the value at ``path`` replaced, or removed where ``to`` is Ellipsis."""
    data = copy.deepcopy(data)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return data


@pytest.mark.parametrize("data, words", [
    ([COCO], "is a list at the top"),
    (3, "is a number at the top"),
    ({}, r"the file has no 'images'"),
    ({"images": []}, "has no images"),
    ({"images": [], "annotations": []}, "has no images"),
    ({"images": {}, "annotations": []}, "'images' is an object, a list is needed"),
    ({"images": [{"id": 3}], "labels": []}, "neither COCO .* its keys: images, labels"),
    ({"a": "a dog"}, "'a' has the string 'a dog', a list of captions is needed"),
    ({"a": ["a dog"], "b": []}, r"the entry \(b\) has no caption"), ({" ": ["a dog"]}, "an image without a name"),
    ({"a": ["a dog", " "]}, "caption 1: the caption of a is empty"),
    ({"a": [["a dog"]]}, "the caption of a is a list, a string"),
    ('{"a": ["b"], "a": ["c"]}', "has 'a' twice in one object"),
    (changed(COCO, "annotations", to=None), "'annotations' is null, a list"),
    (changed(COCO, "annotations", to=COCO["annotations"][:2]), r"images\[2\] \(b.jpg\) has no caption"),
    (changed(COCO, "annotations", 1, "image_id", to=99), r"annotations\[1\] is for image id 99"),
    (changed(COCO, "annotations", 1, "image_id", to="30"), r"annotations\[1\] is for image id '30'"),
    (changed(COCO, "annotations", 1, "image_id", to=...), r"\[1\] has no 'image_id' .*id, caption"),
    (changed(COCO, "annotations", 1, "image_id", to=[30]), r"'image_id' is a list, a number"),
    (changed(COCO, "annotations", 1, "caption", to=...), r"annotations\[1\] has no 'caption' .*id, image_id"),
    (changed(COCO, "annotations", 1, "caption", to=" \n"), r"\[1\]: the caption of c.jpg is empty"),
    (changed(COCO, "annotations", 1, "caption", to="a \ud83d"),
     r"annotations\[1\]: the caption of c.jpg has half a character .*'a .ud83d'"),
    (changed(COCO, "annotations", 1, "caption", to=["a"]), r"annotations\[1\]: .* is a list, a string"),
    (changed(COCO, "annotations", 1, "id", to=5), r"annotations\[3\] repeats the id 5 of annotations\[1\]"),
    (changed(COCO, "annotations", 1, to="a dog"), r"annotations\[1\] is the string 'a dog', an object"),
    (changed(COCO, "images", 1, "id", to=11), r"images\[2\] repeats the id 11 of images\[1\]"),
    (changed(COCO, "images", 1, "file_name", to="b.jpg"), "repeats the file name 'b.jpg' of images"),
    (changed(COCO, "images", 1, "file_name", to=...), r"images\[1\] has no 'file_name'"),
    (changed(COCO, "images", 1, "file_name", to=""), r"images\[1\]: 'file_name' is the string ''"),
    (changed(COCO, "images", 1, "id", to=True), r"images\[1\]: 'id' is true or false"),
    (changed(COCO, "images", 1, to=None), r"images\[1\] is null"),
    (changed(KARPATHY, "images", 4, "sentences", to=[]), r"images\[4\] \(train2014/4.jpg\) has no caption"),
    (changed(KARPATHY, "images", 4, "sentences", 1, "raw", to=""), r"\[4\].sentences\[1\]: .* is empty"),
    (changed(KARPATHY, "images", 4, "sentences", 1, "raw", to=7), r"\[4\].sentences\[1\]: .* is a number"),
    (changed(KARPATHY, "images", 4, "sentences", 1, "raw", to=...), r"\[4\].sentences\[1\] has no 'raw'"),
    (changed(KARPATHY, "images", 4, "sentences", 1, to="x"), r"images\[4\].sentences\[1\] is the string 'x'"),
    (changed(KARPATHY, "images", 4, "split", to=...), r"images\[4\] has no 'split'"),
    (changed(KARPATHY, "images", 4, "filename", to=...), r"images\[4\] has no 'filename'"),
    (changed(KARPATHY, "images", 4, "sentences", to=...), r"images\[4\] has no 'sentences'"),
    (changed(KARPATHY, "images", 4, "cocoid", to=1000), r"images\[4\] repeats the id 1000 of images\[0\]"),
    (changed(KARPATHY, "images", 4, "filename", to="2.jpg"), "repeats the file name 'train2014/2.jpg'"),
])
def test_faults_in_json(tmp_path: Path, data: Any, words: str) -> None:
    file = write(tmp_path, data)
    with pytest.raises(InputError, match=words) as caught:
        read_captions(file, split="train" if isinstance(data, dict) and "dataset" in data else None)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, words", [
    ("", "is empty"),
    ("\n \n", "is empty"),
    ("image,caption\n", "has no images"),
    ("a.jpg#0\tone\rtwo\n", "line 2 is no"),
    ("just some text\n", "line 1 is no 'name.jpg#0<TAB>caption': 'just some text'"),
    ("a.jpg#0\tdog\na.jpg#1 cat\n", "line 2 is no"),
    ("a.jpg#0\tdog\n\nb.jpg#x\tcat\n", "line 3 is no"),
    ("a.jpg#0\tdog\na.jpg#0\tcat\n", r"line 2 repeats caption 0 of a.jpg \(line 1\)"),
    ("a.jpg#0\tdog\na.jpg#1\t \n", "line 2: the caption of a.jpg is empty"),
    (" #0\tdog\n", "line 1 has no image name"),
    ("image,caption\na.jpg,dog\nb.jpg\n", "line 3: the caption of b.jpg is empty"),
    ("image,caption\na.jpg,dog\nb.jpg,\"cat\nc.jpg,a \"pig\"\n", "line 3 is no 'image,caption'"),
    ("image,caption\na.jpg,\"Stop\" sign\n", "line 2 is no 'image,caption'"),
    ("image,caption\n,dog\n", "line 2 has no image name"),
    ("image_name| comment_number| comment\na.jpg| dog\n", "line 2 is no 'image_name"),
    ("image_name| comment_number| comment\na.jpg| 1|\n", "line 2: the caption of a.jpg is empty"),
    ("{\"images\": [", "is not JSON"),
])
def test_faults_in_text(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text, "captions.txt")
    with pytest.raises(InputError, match=words) as caught:
        read_captions(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_faults_of_the_file_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_captions(tmp_path / "none.json")
    with pytest.raises(InputError, match="folder"):
        read_captions(tmp_path)
    (tmp_path / "latin.txt").write_bytes("a.jpg#0\tcafé\n".encode("latin-1"))
    with pytest.raises(InputError, match="latin.txt: is not UTF-8"):
        read_captions(tmp_path / "latin.txt")


def test_check_images(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(6)] + ["deep/x.jpg"]
    read = CaptionSet(tuple(names), {name: ("a",) for name in names}, dict(zip(names, names)), "c.json")
    folder = tmp_path / "images"
    with pytest.raises(InputError, match="images: no such folder"):
        read.check_images(folder)
    (folder / "deep").mkdir(parents=True)
    (folder / "5.jpg").mkdir()  # a folder is no image
    for name in ("0.jpg", "deep/x.jpg"):
        (folder / name).touch()
    with pytest.raises(InputError, match=r"5 of the 7 images of c.json .* 1.jpg, 2.jpg, 3.jpg and 2 more"):
        read.check_images(folder)
    (folder / "5.jpg").rmdir()
    for name in names:
        (folder / name).touch()
    read.check_images(str(folder))


def test_three_formats_agree(tmp_path: Path) -> None:
    """One random set of captions, written in each format, reads the same."""
    draw = random.Random(4)
    captions = {f"{draw.randrange(10**6)}_{index}.jpg": tuple(
        " ".join(draw.choices(["a", "dog,", "'runs'", '"big"', "|", "#2", "."], k=draw.randint(1, 9))).strip()
        for _ in range(draw.randint(1, 5))) for index in range(40)}
    rows = [(name, place, text) for name, texts in captions.items() for place, text in enumerate(texts)]
    coco = {"images": [{"id": index, "file_name": name} for index, name in enumerate(captions)],
            "annotations": [{"image_id": list(captions).index(name), "caption": text}
                            for name, _, text in rows]}
    karpathy = {"images": [{"filename": name, "sentences": [{"raw": text} for text in texts]}
                           for name, texts in captions.items()]}
    quoted = [(name, text.replace('"', '""')) for name, _, text in rows]
    for content in (coco, karpathy, "".join(f"{name}#{place}\t{text}\n" for name, place, text in rows),
                    "image,caption\n" + "".join(f'{name},"{text}"\n' for name, text in quoted),
                    "image_name| comment_number| comment\n"
                    + "".join(f"{name}| {place}| {text}\n" for name, place, text in rows)):
        read = read_captions(write(tmp_path, content, "any"))
        assert read.captions == captions and read.images == tuple(captions)


@pytest.mark.shared
def test_real_files(shared: Path) -> None:
    read = read_captions(shared / "data/flickr8k/dev.json")
    assert len(read) == 1000 and {len(texts) for texts in read.captions.values()} == {5}
    assert read.ids["2090545563_a4e66ec76b.jpg"] == 6000
    assert read.captions[read.images[0]][0].startswith("the boy laying face down on a skateboard")
    read.check_images(shared / "data/flickr8k/images")
    coco = read_captions(shared / "data/coco/captions_val2017.json")
    assert len(coco) == 5000 and sum(map(len, coco.captions.values())) == 25014
    with pytest.raises(InputError, match="4921 of the 5000 images"):
        coco.check_images(shared / "data/coco/images")
    with pytest.raises(InputError, match=r"annotations\[0\] has no 'caption'"):
        read_captions(shared / "data/coco/instances.json")
