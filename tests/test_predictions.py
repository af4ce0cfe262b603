"""Files of predictions in every layout, and that an id is the image it names or an error."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from minivl.data.captions import read_captions
from minivl.data.predictions import MOST_WORDS, NUMBERS, Matched, Predictions, match, read_candidates, read_predictions
from minivl.errors import InputError

CAPTIONS = {"b": "A dog .", "sub/a.jpg": "two\u2028cats\r", "c.v2": " über {\"ü\"} "}


def write(folder: Path, content: Any, name: str = "pred.json") -> Path:
    file = folder / name
    file.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode("utf-8"))
    return file


def lines(records: list[dict[str, Any]], end: str = "\n") -> str:
    return end.join(json.dumps(record, ensure_ascii=False) for record in records) + end


# -- reading -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("id", ["image_id", "file_name", "filename", "image"])
@pytest.mark.parametrize("text", ["caption", "text"])
def test_layouts_agree(id: str, text: str, tmp_path: Path) -> None:
    records = [{"score": place, text: caption, id: key} for place, (key, caption) in enumerate(CAPTIONS.items())]
    for content in (CAPTIONS, records, lines(records), "\ufeff\n" + lines(records, "\r\n\r\n"), lines(records)[:-1],
                    json.dumps(records, indent=2), json.dumps(CAPTIONS, indent=2)):
        read = read_predictions(write(tmp_path, content, "any"))
        assert read == Predictions(CAPTIONS, (), (), str(tmp_path / "any")) and len(read) == 3
        assert list(read.captions) == list(CAPTIONS)  # in the order of the file
    one = read_predictions(write(tmp_path, records[0]))  # a file of one line
    assert one.captions == {"b": "A dog ."}


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    read = read_predictions(write(tmp_path, [{"image_id": 7, "caption": "a"}, {"image_id": "7", "caption": "b"}]))
    assert read.captions == {7: "a", "7": "b"}


def test_image_id_wins_over_other_names(tmp_path: Path) -> None:
    record = {"id": 9, "image": "x.png", "image_id": 5, "caption": "a", "text": "b"}
    assert read_predictions(write(tmp_path, [record])).captions == {5: "a"}


def test_doubled_and_empty_are_counted(tmp_path: Path) -> None:
    by_name = '{"a": "one", "b": " \\n", "a": "two", "c": "x", "a": "three"}'
    records = [{"image_id": key, "caption": caption} for key, caption in json.loads(
        by_name, object_pairs_hook=list)]
    for content in (by_name, records, lines(records)):
        read = read_predictions(write(tmp_path, content))
        assert read.captions == {"a": "one", "b": " \n", "c": "x"}
        assert (read.doubled, read.empty) == (("a",), ("b",))


@pytest.mark.parametrize("content, words", [
    ("", "is not JSON: Expecting value at line 1 column 1"),
    ("{\"a\": \"b\",\n \"c\" \"d\"}", "is not JSON: .* at line 2 column 6"),
    ("a dog\n", "is not JSON: .* at line 1 column 1"),
    ('{"image_id": 1, "caption": "a"}\n\n{"image_id": 2, caption}\n', "is not JSON: .* at line 3 column 17"),
    ('{"a": "b"}\n{"a": "c"}\n', r"line 1 has no 'image_id' \(its keys: a\)"),
    ('{"image_id": 1, "caption": "a"}\n3\n', "line 2 is a number: of which image is it"),
    ('{"image_id": 1, "caption": "a", "image_id": 2}', "line 1 has 'image_id' twice"),
    ('{"image_id": 1, "caption": "a"}\n{"image_id": 1, "image_id": 2, "caption": "a"}', "'image_id' twice"),
    ('[{"image_id": 1, "caption": "a", "caption": "b"}]', "entry 0 has 'caption' twice"),
    ("3", "is a number at the top; predictions are "), ("null", "is null at the top"),
    ({}, "has no captions"), ([], "has no captions"),
    (["a dog", "a cat"], "entry 0 is the string 'a dog': of which image is it"),
    ({"a": ["a dog"]}, "the caption of 'a' is a list, a string is needed; lists of captions are references"),
    ({"a": "x", "b": None}, "the caption of 'b' is null, a string"), ({"a": 3}, "is a number, a string"),
    ({"a": {"b": "c"}}, "is an object, a string"), ({" ": "c"}, "the image is the string ' '"),
    ([{"image_id": True, "caption": "a"}], "entry 0: the image is true or false, a number or a file name"),
    ([{"image_id": 1.0, "caption": "a"}], "the image is a number, a number or"),
    ([{"image_id": None, "caption": "a"}], "the image is null"),
    ([{"id": 1, "caption": "a"}], r"entry 0 has no 'image_id' \(its keys: id, caption\)"),
    ([{"image_id": 1, "captions": "a"}], r"entry 0 has no 'caption' \(its keys: image_id, captions\)"),
    ({"a": "dog \ud83d"}, "half a character"), ({"a\ud83d": "dog"}, "half a character"),
    ({"x": "word " * 10_000}, f"'x' has 10000 words, more than {MOST_WORDS}: that is no caption"),
])
def test_faults(tmp_path: Path, content: Any, words: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(InputError, match=words) as caught:
        read_predictions(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_faults_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_predictions(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes('{"a": "café"}'.encode("latin-1"))
    with pytest.raises(InputError, match="latin.json: is not UTF-8"):
        read_predictions(tmp_path / "latin.json")


def test_the_longest_caption_passes(tmp_path: Path) -> None:
    assert len(read_predictions(write(tmp_path, {"x": "word " * MOST_WORDS}))) == 1


def test_candidates_of_every_layout(tmp_path: Path) -> None:
    records = [{"image_id": 7, "caption": "a dog", "others": [{"caption": "two dogs", "score": -1}, {"text": ""}]},
               {"image_id": "b", "text": "a cat", "others": []}, {"image_id": 7, "caption": "a dog"}]
    for content in (records, lines(records)):
        assert read_candidates(write(tmp_path, content)) == {7: ["a dog", "two dogs", "", "a dog"], "b": ["a cat"]}
        assert read_predictions(write(tmp_path, content)).captions == {7: "a dog", "b": "a cat"}
    assert read_candidates(write(tmp_path, '{"a": "one", "b": "two", "a": "three"}')) == {"a": ["one", "three"],
                                                                                          "b": ["two"]}


@pytest.mark.parametrize("others, words", [
    ("a cat", "entry 1: 'others' of 8 is the string 'a cat', a list of objects is needed"),
    ([{"caption": "a cat"}, "a dog"], "entry 1, place 1 of 'others': the caption of 8 is null, a string is needed"),
    ([{"caption": 3}], "entry 1, place 0 of 'others': the caption of 8 is a number"),
    ([{"caption": "dog \ud83d"}], "entry 1, place 0 of 'others': 8 or its caption has half a character"),
])
def test_faults_of_candidates(tmp_path: Path, others: Any, words: str) -> None:
    file = write(tmp_path, [{"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "b", "others": others}])
    with pytest.raises(InputError, match=f"^{file}: {words}"):
        read_candidates(file)
    assert len(read_predictions(file)) == 2  # which reads nothing of them
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(InputError, match="has no captions"):
        read_candidates(tmp_path / "none.json")


# -- matching ------------------------------------------------------------------------------------------------

def test_every_spelling_of_a_name_is_the_image() -> None:
    draw = random.Random(1)
    images = [f"{draw.choice(['train', 'val'])}/{draw.randrange(10 ** 9)}_{place}.{draw.choice(['jpg', 'PNG'])}"
              for place in range(50)]
    ids: dict[str, int | str] = {name: 7000 + place for place, name in enumerate(draw.sample(images, 50))}
    chosen = draw.sample(images, 50)
    for spell, rule in ((lambda name: name, "file names"), (lambda name: name.split("/")[1], "without folder"),
                        (lambda name: name.split(".")[0], "without suffix"), (lambda name: ids[name], "ids"),
                        (lambda name: name.split("/")[1].split(".")[0], "folder and suffix"),
                        (lambda name: f"/data/{name}", "without folder"),
                        (lambda name: str(ids[name]), "ids"),
                        (lambda name: name.replace("jpg", "webp"), "without suffix")):
        keys = [spell(name) for name in chosen]
        found = match(keys, images, ids)
        assert found.keys == dict(zip(chosen, keys)) and list(found.keys) == chosen
        assert (found.missing, found.extra, found.doubled) == ((), (), ()) and rule in found.rule


@pytest.mark.parametrize("images", [
    ["000000397133.jpg", "000000000009.jpg"], ["COCO_val2014_000000397133.jpg", "COCO_train2014_000000000009.jpg"],
    ["val2014/COCO_val2014_000000397133.jpg", "x/9.png"], ["000000397133", "9"]])
@pytest.mark.parametrize("keys", [[9, 397133], ["9", "397133"], ["COCO_val2014_000000000009", "397133.jpg"],
                                  ["000000000009.jpg", "000000397133"]])
def test_numbers_of_coco(images: list[str], keys: list[Any]) -> None:
    assert match(keys, images).keys == dict(zip(reversed(images), keys))


def test_what_is_missing_extra_or_doubled_is_told() -> None:
    found = match(["b", "z.jpg", "a.png", "a", "q"], ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    assert found == Matched({"b.jpg": "b", "a.jpg": "a.png"}, ("c.jpg", "d.jpg"), ("z.jpg", "q"), ("a",),
                            "file names without suffix")


def test_a_suffix_that_is_no_pictures_is_part_of_the_name() -> None:
    assert match(["a.v2", "a.v1"], ["a.v1.jpg", "a.v2.jpg"]).keys == {"a.v2.jpg": "a.v2", "a.v1.jpg": "a.v1"}


def test_a_number_is_the_declared_id_not_the_one_in_the_name() -> None:
    ids: dict[str, int | str] = {"1.jpg": 3, "2.jpg": 1, "3.jpg": 2}
    assert match([1, 2, 3], list(ids), ids).keys == {"2.jpg": 1, "3.jpg": 2, "1.jpg": 3}
    assert match([1, 2], list(ids), ids).keys == {"2.jpg": 1, "3.jpg": 2}
    # a string may be either, so it is refused, unless its suffix says that it is a file
    with pytest.raises(InputError, match="the id '1' of p.json is 1.jpg of r.json if the ids are file names without "
                                         "suffix, and 2.jpg if they are ids: give file names with"):
        match(["1", "2", "3"], list(ids), ids, predictions="p.json", references="r.json")
    assert match(["1.jpg", "3.jpg"], list(ids), ids).keys == {"1.jpg": "1.jpg", "3.jpg": "3.jpg"}


def test_the_rule_under_which_all_ids_are_images_is_taken() -> None:
    """File names count from 1, ids from 0."""
    ids: dict[str, int | str] = {f"{number}.jpg": number - 1 for number in range(1, 6)}
    assert match(["1", "2", "3", "4", "5"], list(ids), ids).rule == "file names without suffix"
    assert match(["0", "1", "2", "3", "4"], list(ids), ids).rule == "ids"
    with pytest.raises(InputError, match="if they are ids"):
        match(["1", "2", "3", "4"], list(ids), ids)
    with pytest.raises(InputError, match="if they are ids"):
        match(["1", "2", "3", "9"], list(ids), ids)


def test_rules_that_agree_are_no_trouble() -> None:
    ids: dict[str, int | str] = {f"{number:012d}.jpg": number for number in (9, 25, 397133)}
    assert match(["25", "9", "4"], list(ids), ids).extra == ("4",)
    assert match([25, 9, 397133], list(ids)).rule == NUMBERS


@pytest.mark.parametrize("key", ["1", "1.jpg", 1])
def test_an_id_of_several_images_is_refused(key: Any) -> None:
    images = ["train/1.jpg", "val/1.jpg", "val/2.jpg"]
    with pytest.raises(InputError, match="the id '?1(.jpg)?'? of .* may be train/1.jpg, val/1.jpg of .* folders and"):
        match([key, "2"], images)
    assert match(["val/1", "train/1"], images).keys == {"val/1.jpg": "val/1", "train/1.jpg": "train/1"}


def test_ids_of_nothing_show_both_sides() -> None:
    images = [f"{place}_x.jpg" for place in range(9)]
    with pytest.raises(InputError) as caught:
        match(["u", "v", "w", "x", 5], images, {name: 100 + place for place, name in enumerate(images)},
              predictions="p.json", references="r.json")
    assert str(caught.value) == ("no id of p.json ('u', 'v', 'w' and 2 more) is an image of r.json (0_x.jpg (id 100), "
                                 "1_x.jpg (id 101), 2_x.jpg (id 102) and 6 more): are they of the same images?")
    with pytest.raises(InputError, match=r"no id of the predictions .* \(none\)"):
        match(["a"], [])


@pytest.mark.shared
def test_coco_results_and_the_course_layout_name_the_same_images(shared: Path) -> None:
    captions = read_captions(shared / "data/coco/captions_val2017.json")
    stems = [name.removesuffix(".jpg") for name in captions.images]
    numbers = [captions.ids[name] for name in captions.images]
    for keys in (stems, numbers, list(map(str, numbers)), list(captions.images)):
        found = match(keys, captions.images, captions.ids)
        assert list(found.keys.values()) == keys and tuple(found.keys) == captions.images
