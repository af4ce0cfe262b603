"""Every picture: captions word by word, the best and the worst of them, the heads of a layer, position embeddings, and
the curves of trainings.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import minivl
from minivl import programs
from minivl.data.scenes import Scenes
from minivl.errors import InputError, counted
from minivl.explain.positions import position_similarity, prefix_similarity
from minivl.files import existing_file
from minivl.geometry import Geometry
from minivl.images import open_photo, to_tensor
from minivl.loading import Model
from minivl.maps import to_grid, upsample, word_rows
from minivl.metrics.clipscore import PRESETS
from minivl.models.captioner import Caption, Captioner
from minivl.models.clip import CLIP
from minivl.models.vit import ViT
from minivl.nn.record import AttnRecord
from minivl.plotting.attention import attention_sheet
from minivl.plotting.captions import caption_sheet
from minivl.plotting.figure import save_figure
from minivl.plotting.history import history_plot
from minivl.plotting.positions import positions_plot
from minivl.plotting.ranking import MOST_WORDS, Ranked, ranking_sheet, word_size
from minivl.plotting.sheet import panel_size
from minivl.search import BEAMS, Options
from minivl.search.arguments import options_as_typed, options_of
from minivl.text.tokenizer import Tokenizer
from minivl.train.clip_features import clip_name, load_clip
from minivl.train.clip_judge import ClipJudge
from minivl.train.looks import noted_look
from minivl.train.loop import autocast
from minivl.train.ranking import Captioned, extremes, photos_of, read_captioned, say_captions
from minivl.train.run import read_history
from minivl.train.telling import tell

SHIPPED, SHIPPED_CLIP = "scenes-captioner", "scenes-clip"
SCENES_START = 20_000_000  # no scene from here on is trained or validated on
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
SCENES_DRAWN = 6  # of viz.py caption
SCENES_RANKED = 60  # scenes among which the best and the worst captions are looked for
MOST_PAIRS = 20  # of best and of worst captions in one picture
TOGETHER = 16  # photos of a batch
Batch = tuple[list["Source"], list[Image.Image], Tensor, list[Geometry]]

log = logging.getLogger("viz")


# -- the command line ----------------------------------------------------------------------------------------

def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True,
                                     metavar="caption | ranking | attention | positions | history")
    caption = commands.add_parser("caption", help="photos word by word", doc="Caption photos, and show where "
                                  "each word looked. Without photos: built-in scenes.")
    caption.add_argument("images", nargs="*", metavar="IMAGE", type=Path, help="photos, or folders of photos")
    caption.add_argument("--weights", help=f"a captioner (without photos {SHIPPED}, which is shipped)")
    caption.add_argument("--out", type=Path, default=Path("runs/viz"), help="folder of the pictures")
    caption.add_argument("--scenes", type=int, help=f"how many to draw, where no photos are given (without it: "
                         f"{SCENES_DRAWN})")
    caption.add_argument("--beams", type=int, default=3, help="of the search; 1 is greedy")
    caption.add_argument("--max-len", type=int, help="longest caption in tokens, the end token counted "
                         "(without it: 30, or what the decoder has room for)")
    caption.add_argument("--layer", type=int, help="of the decoder, from 0, negative from its end (without "
                         "it: what the weights note, or the last)")
    caption.add_argument("--heads", type=_heads, help='of that layer: "mean" or numbers such as 0,2 that are '
                         "averaged (without it: what the weights note, or the mean of all)")
    _add_ranking(commands)
    attention = commands.add_parser("attention", help="photos head by head", doc="Show what the [class] "
                                    "token attends to, in the mean of the heads and in every head.")
    attention.add_argument("images", nargs="+", metavar="IMAGE", type=Path,
                           help="photos, or folders of photos")
    attention.add_argument("--weights", required=True, help="a ViT, or a captioner for its encoder")
    attention.add_argument("--out", type=Path, default=Path("runs/viz/attention"),
                           help="folder of the pictures")
    attention.add_argument("--layer", type=int, default=-1,
                           help="of the encoder, from 0, negative from its end")
    attention.add_argument("--heads", choices=("mean", "all"), default="all",
                           help="the mean alone, or every head, too")
    positions = commands.add_parser("positions", help="what the position embeddings know of the grid",
                                    doc="Draw how alike the position embeddings of a ViT are: for every patch a "
                                    "small map of its cosine similarities with all patches, arranged as the patches "
                                    "are.")
    positions.add_argument("--weights", required=True,
                           help="a ViT, a captioner for its encoder, or a CLIP for its image tower")
    positions.add_argument("--out", type=Path, default=Path("runs/viz/positions.png"), help="the picture (.png)")
    history = commands.add_parser("history", help="curves of trainings",
                                  doc="Draw losses and scores of training runs over each other.")
    history.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders of runs")
    history.add_argument("--out", type=Path, default=Path("runs/viz/history.png"), help="the picture")
    for command in (caption, attention):
        command.add_common()
    for command in (positions, history):
        command.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    folder = args.command in ("caption", "attention")  # else one picture
    if args.out.is_dir() and not folder:
        raise InputError(f"--out {args.out}: it is a folder, name a picture (.png)")
    programs.check_place("--out", args.out, folder=folder)
    return args


def _add_ranking(commands: Any) -> None:
    ranking = commands.add_parser(
        "ranking", help="the best and the worst captions", doc="Draw the captions with the highest and the lowest "
        "CLIPScore, and where a captioner looks when it is told each of their words. Without --predictions the "
        "captions are the captioner's own; without --images the photos are built-in scenes.")
    ranking.add_argument("--predictions", type=Path, help="captions: JSON by file name, COCO results or JSON lines")
    ranking.add_argument("--images", type=Path, help="folder of their photos, and of folders of photos")
    ranking.add_argument("--clip", help=f"the CLIP that scores (for scenes {SHIPPED_CLIP}, which is shipped)")
    ranking.add_argument("--clip-preset", choices=tuple(PRESETS), default="hessel", help="which CLIPScore")
    ranking.add_argument("--weights", help=f"the captioner whose attention is drawn; without it there is none (for "
                         f"scenes {SHIPPED}, which is shipped)")
    ranking.add_argument("--pairs", type=int, default=3, help="so many of the best, and of the worst")
    ranking.add_argument("--out", type=Path, default=Path("runs/viz/ranking.png"), help="the picture (.png)")
    ranking.add_argument("--scenes", type=int, help=f"how many to rank, where no photos are given (without it: "
                         f"{SCENES_RANKED})")
    ranking.add_argument("--beams", type=int, help="of the search, where the captions are the captioner's own "
                         "(without it: 3)")
    ranking.add_argument("--layer", type=int, help="of the captioner, as for viz.py caption")
    ranking.add_argument("--heads", type=_heads, help="of that layer, as for viz.py caption")
    ranking.add_common()


def _heads(text: str) -> str | tuple[int, ...]:
    try:
        return text if text == "mean" else tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: give "mean" or numbers such as 0,2') from None


# -- photos --------------------------------------------------------------------------------------------------

class Source(NamedTuple):
    """A picture to look at, opened when its turn comes.

    Attributes:
        name: what it is called on standard output.
        target: the PNG that will be drawn.
        open: gives it as displayed.
    """

    name: str
    target: Path
    open: Callable[[], Image.Image]


def photos(paths: Sequence[Path], out: Path) -> list[Source]:
    """The photos of files and folders, each with a target of its own.

    Raises:
        InputError: nothing there, a folder without photos, two photos that would become one picture, or a
            picture that would replace its photo.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(existing_file(path))
            continue
        inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        found = [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not found:
            raise InputError(f"holds no photos ({', '.join(SUFFIXES)})", source=path)
        if len(found) < len(inside):
            log.info("%s: left out, as no photos: %s", path, counted(len(inside) - len(found), "file"))
        files += found
    sources: dict[str, Source] = {}
    for file in files:
        source = Source(str(file), out / f"{file.stem}.png", partial(open_photo, file))
        earlier = sources.setdefault(file.stem.casefold(), source)
        if earlier is not source:
            raise InputError(f"{earlier.name} and {file} would both become {source.target}: "
                             "give one of them, or rename it")
        if source.target.exists() and any(source.target.samefile(other) for other in files):
            raise InputError(f"--out {out}: the picture would replace the photo {source.target}; "
                             "give another folder")
    return list(sources.values())


def scenes(count: int, seed: int, size: int, out: Path) -> list[Source]:
    """Built-in scenes; `size` is the side in pixels the model was trained on."""
    if count < 1:
        raise InputError(f"--scenes {count}: give at least 1")
    drawn = Scenes(count, seed=seed, size=size, start=SCENES_START)
    return [Source(f"scene-{number}", out / f"scene-{number}.png", partial(_draw, drawn, place))
            for place, number in enumerate(drawn.indices)]


def _draw(drawn: Scenes, place: int) -> Image.Image:
    return drawn[place].image


def batches(sources: Sequence[Source], model: Model) -> Iterator[Batch]:
    """Sources with their photos as displayed, the tensor of them (B, 3, H, W), and geometries.

    Mode "long" keeps each photo's own shape: they come one by one, because a model could see padding.
    """
    assert model.preprocessing is not None  # `load` saw to it
    together = 1 if model.preprocessing.mode == "long" else TOGETHER
    for first in programs.progress(range(0, len(sources), together), desc="pictures",
                                   disable=len(sources) <= TOGETHER or None):
        part = list(sources[first:first + together])
        opened, tensors, geometries = [], [], []
        for source in part:
            photo = source.open()
            tensor, geometry = to_tensor(photo, model.preprocessing, model.cell, name=source.name)
            opened.append(photo)
            tensors.append(tensor)
            geometries.append(geometry)
        yield part, opened, torch.stack(tensors), geometries


def shown(geometry: Geometry, panels: int) -> Geometry:
    """The same view of the photo as it is drawn on a sheet of so many panels: exact, on fewer pixels."""
    return replace(geometry, source=panel_size(geometry.source, panels))


# -- models --------------------------------------------------------------------------------------------------

def load(weights: str, device: torch.device) -> Model:
    """A model that pictures can be made with."""
    model = minivl.load(weights).to(device).float()  # programs compute in float32, or by autocast
    if model.preprocessing is None:
        raise InputError("its preprocessing is unknown, so photos cannot be given to it: name the file after "
                         "a preset, or save it with minivl.save", source=weights)
    return model


def captioner_of(model: Model, weights: str) -> Captioner:
    """A model, if it says captions."""
    if isinstance(model, Captioner):
        return model
    kind = "classifier" if isinstance(model, ViT) else model.kind
    raise InputError(f"is a {kind}, which says no captions; give the weights of a captioner (train_p2.py makes them), "
                     "or use: viz.py attention", source=weights)


def check_layer(model: Model, site: str, layer: int, heads: str | Sequence[int], asked: str) -> int:
    """The layer counted from 0.

    Raises:
        InputError: there is no such layer or head; `asked` says who wants it.
    """
    layers, count = model.attn_sites[site]
    if not -layers <= layer < layers:
        raise InputError(f"{asked} layer {layer}: there are {layers} (0 to {layers - 1}, "
                         f"or -{layers} to -1)")
    for head in () if isinstance(heads, str) else heads:
        if not -count <= head < count:
            raise InputError(f"{asked} head {head}: there are {count} (0 to {count - 1}, or -{count} to -1)")
    return layer % layers


def encoder_of(model: Model) -> torch.nn.Module:
    """The part of a model that sees the pictures."""
    return model.visual if isinstance(model, CLIP) else model.encoder if isinstance(model, Captioner) else model


class Look(NamedTuple):
    """Which cross-attention is shown: a layer, counted from 0, and the heads that are averaged."""

    layer: int
    heads: str | tuple[int, ...]


def look_of(captioner: Captioner, weights: str, layer: int | None,
            heads: str | tuple[int, ...] | None) -> Look:
    """The options, else what the weights note under "look", else the last layer and all its heads.

    Heads noted for one layer say nothing about another: with a layer of one's own it is the mean of all.

    Raises:
        InputError: a layer or head that is not there.
    """
    noted = noted_look(captioner, weights) if captioner.notes.get("look") else {}
    asked = "--layer, --heads:" if layer is not None or heads is not None else f"{weights}: notes, look:"
    if heads is None:
        there = noted.get("heads", "mean") if layer is None else "mean"
        heads = there if isinstance(there, str) else tuple(there)
    if layer is None:
        layer = noted.get("layer", -1)
    return Look(check_layer(captioner, "cross", layer, heads, asked), heads)


def look_note(look: Look, captioner: Captioner) -> str:
    """What is shown, in words."""
    decoder = captioner.config.decoder
    named = f"mean of all {decoder.num_heads} heads"
    if look.heads != "mean":
        named = f"{'mean of heads' if len(look.heads) > 1 else 'head'} {', '.join(map(str, look.heads))}"
    return f"cross-attention in decoder layer {look.layer} (of 0 to {decoder.depth - 1}), {named}"


# -- caption -------------------------------------------------------------------------------------------------

def spans(caption: Caption, tokenizer: Tokenizer | None, eos_id: int) -> list[tuple[str, int, int]]:
    """The panels after <BOS>: (label, start, stop) with the pieces ``ids[start:stop]``.

    Words; unknown tokens, which are in no word; without a tokenizer every id; and <EOS>, if it was chosen.
    """
    last = len(caption.ids) - 1
    found = [(word.text, word.start, word.stop) for word in caption.words or ()]
    for place, id in enumerate(caption.ids[1:], 1):
        if place == last and id == eos_id:
            found.append(("<EOS>", place, place + 1))
        elif tokenizer is None:
            found.append((f"#{id}", place, place + 1))
        elif id == tokenizer.unk_id:
            found.append(("<UNK>", place, place + 1))
    return sorted(found, key=lambda span: span[1])


def draw_caption(photo: Image.Image, caption: Caption, cross: Tensor, labels: Sequence[tuple[str, int, int]],
                 geometry: Geometry, n_prefix: int, note: str, target: Path) -> None:
    """One caption sheet.

    Args:
        photo: as displayed.
        caption: what was said.
        cross: (T, N) the looks, row t chose ``ids[t + 1]``.
        labels: of `spans`.
        geometry: of the photo.
        n_prefix: tokens before the patches.
        note: what cross is.
        target: the PNG.
    """
    maps, share = word_maps(cross, labels, shown(geometry, len(labels) + 1), n_prefix)
    panels = [("<BOS>", None), *maps]
    text = caption.text
    if text is None:
        text = " ".join(label for label, _, _ in labels if label != "<EOS>")
    save_figure(caption_sheet(photo, panels, caption=text, logprob=caption.logprob, note=note + share), target)


def word_maps(cross: Tensor, labels: Sequence[tuple[str, int, int]], geometry: Geometry,
              n_prefix: int) -> tuple[list[tuple[str, np.ndarray]], str]:
    """(word, heat over the geometry's source) of each label, and what is to be said of the weight that is on no patch.

    Args: as of `draw_caption`.
    """
    rows = word_rows(cross, [(start, stop) for _, start, stop in labels])  # (W, N)
    share = ""
    if n_prefix and len(rows):
        share = f" · {rows[:, :n_prefix].sum(1).mean():.0%} of the weight is on the [class] token, not on patches"
    maps = upsample(to_grid(rows, n_prefix, geometry.grid), geometry)  # (W, h, w)
    return [(label, heat.numpy()) for (label, _, _), heat in zip(labels, maps)], share


@torch.no_grad()
def run_caption(args: argparse.Namespace) -> None:
    """Captions with a picture each."""
    if args.images and not args.weights:
        raise InputError("--weights is missing: which captioner shall see these photos?")
    if args.images and args.scenes is not None:
        raise InputError("--scenes: photos are given; give one of the two")
    options_of(args, Options.max_len)  # what cannot be is said before anything is read
    sources = photos(args.images, args.out)
    weights, device = args.weights or SHIPPED, programs.device_of(args.device)
    model = captioner_of(load(weights, device), weights)
    look, decoder = look_of(model, weights, args.layer, args.heads), model.config.decoder
    options = options_of(args, model.longest)
    with options_as_typed():
        model.caption([], **vars(options))
    assert model.preprocessing is not None  # `load` saw to it
    count = SCENES_DRAWN if args.scenes is None else args.scenes
    sources = sources or scenes(count, args.seed, model.preprocessing.size[0], args.out)
    note = look_note(look, model)
    for part, opened, images, geometries in batches(sources, model):
        record = AttnRecord(sites=("cross",), layers=[look.layer], heads=look.heads)
        with autocast(device, programs.precision_of(args.precision, device)):
            memory = model.encode(images.to(device))
            captions = model.caption(memory, **vars(options))
            # without its last id, which chooses nothing, a caption of full length fits into the decoder, too
            model.replay(None, [caption.ids[:-1] for caption in captions], attn=record, memory=memory)
        cross = record["cross", look.layer].mean(1).float().cpu()  # (B, T, N)
        for source, photo, caption, rows, geometry in zip(part, opened, captions, cross, geometries):
            labels = spans(caption, model.tokenizer, decoder.eos_id)
            draw_caption(photo, caption, rows, labels, geometry, memory.n_prefix, note, source.target)
            words = None if caption.words is None else [word._asdict() for word in caption.words]
            programs.report(args, {"image": source.name, "text": caption.text, "ids": list(caption.ids),
                                   "words": words, "logprob": caption.logprob, "path": str(source.target)},
                            f"{source.target}: {list(caption.ids) if caption.text is None else caption.text}")


# -- ranking -------------------------------------------------------------------------------------------------

def check_ranking(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if not 1 <= args.pairs <= MOST_PAIRS:
        raise InputError(f"--pairs {args.pairs}: give 1 to {MOST_PAIRS}")
    if args.out.suffix.lower() != ".png":
        raise InputError(f"--out {args.out}: the picture is written as .png, name it so")
    if args.predictions and not args.images:
        raise InputError("--images is missing: where are the photos of these predictions?")
    if args.images and not args.clip:
        raise InputError("--clip is missing: which CLIP shall score captions of these photos?")
    if args.images and not args.predictions and not args.weights:
        raise InputError("--predictions or --weights is missing: whose captions shall be ranked?")
    if args.images and args.scenes is not None:
        raise InputError("--scenes: photos are given with --images; give one of the two")
    if args.predictions and args.beams is not None:
        raise InputError("--beams: the captions are given with --predictions, none is searched for")
    if args.beams is not None:
        with options_as_typed():
            Options(beams=args.beams)
    if args.images and not args.weights and not (args.layer is None and args.heads is None):
        raise InputError("--layer, --heads: without --weights there is no captioner whose attention could be drawn")


def ranked(names: Sequence[str], found: Captioned, heads: Mapping[str, str], captioner: Captioner | None,
           look: Look | None, precision: str) -> dict[str, Ranked]:
    """Captioned photos as the picture shows them, with the looks of the captioner, if there is one."""
    sources = [Source(name, Path(), partial(open_photo, found.photos[name])) for name in names]
    if captioner is None or look is None:
        return {source.name: Ranked(source.open(), heads[source.name], found.captions[source.name])
                for source in sources}
    made, device = {}, captioner.decoder.embed.weight.device
    for part, opened, images, geometries in batches(sources, captioner):
        texts = [found.captions[source.name] for source in part]
        looks = tell(captioner, images.to(device), texts, layer=look.layer, heads=look.heads, precision=precision)
        for source, photo, told, geometry in zip(part, opened, looks, geometries):
            labels = spans(told.caption, captioner.tokenizer, captioner.config.decoder.eos_id)
            drawn = labels[:MOST_WORDS]
            view = replace(geometry, source=word_size(geometry.source, len(drawn)))
            panels, share = word_maps(told.cross, drawn, view, told.n_prefix)
            strange = sum(label == "<UNK>" for label, _, _ in labels)
            cut = f" · {counted(strange, 'word')} unknown to it" if strange else ""
            cut += "" if told.whole and drawn == labels else f" · only the first {len(drawn)} words are drawn"
            note = f"log-probability {told.caption.logprob:.2f}{share}{cut}".replace(" -", " \N{MINUS SIGN}")
            made[source.name] = Ranked(photo, heads[source.name], texts[part.index(source)], panels, note)
    return made


@torch.no_grad()
def run_ranking(args: argparse.Namespace) -> None:
    """The best and the worst captions by CLIPScore, in one picture."""
    check_ranking(args)
    device = programs.device_of(args.device)
    precision = programs.precision_of(args.precision, device)
    weights, captioner, look, note = args.weights or (None if args.images else SHIPPED), None, None, None
    if weights:
        captioner = captioner_of(load(weights, device), weights)
        look = look_of(captioner, weights, args.layer, args.heads)
        note = f"{look_note(look, captioner)} of {Path(weights).name}, which was told these captions word by word"
    clip_weights = args.clip or SHIPPED_CLIP
    clip = load_clip(clip_weights, device)
    if args.predictions:
        found = read_captioned(args.predictions, args.images)
    else:
        assert captioner is not None and captioner.preprocessing is not None  # checked, and `load` saw to it
        photos = photos_of(args.images) if args.images else {
            source.name: source.open() for source in scenes(SCENES_RANKED if args.scenes is None else args.scenes,
                                                            args.seed, captioner.preprocessing.size[0], args.out)}
        with options_as_typed():
            found = say_captions(captioner, photos, BEAMS if args.beams is None else args.beams, precision=precision,
                                 progress=programs.progress)
    judge = ClipJudge(clip, found.photos, {}, preset=args.clip_preset, model=clip_name(clip, clip_weights, precision),
                      precision=precision, workers=args.workers, progress=programs.progress)
    score = judge.scores(found.captions)["clip_score"]
    groups = {f"{which} of {len(score.per_item)}": names
              for which, names in zip(("best", "worst"), extremes(score.per_item, args.pairs))}
    heads = {name: f"{place} · CLIPScore {score.per_item[name]:.4f} · {name}".replace(" -", " \N{MINUS SIGN}")
             for names in groups.values() for place, name in enumerate(names, 1)}
    made = ranked(list(heads), found, heads, captioner, look, precision)
    figure = ranking_sheet([(heading, [made[name] for name in names]) for heading, names in groups.items()],
                           title=f"CLIPScore of {counted(len(score.per_item), 'caption')}: {score.score:.4f} in the "
                                 "mean", subtitle=score.signature, note=note)
    save_figure(figure, args.out)
    for heading, names in groups.items():
        for place, name in enumerate(names, 1):
            values = {"group": heading.split()[0], "place": place, "image": name, "caption": found.captions[name],
                      "score": score.per_item[name]}
            programs.report(args, values, f"{values['group']:<5} {place:2d}  {values['score']:.4f}  {name}: "
                                          f"{values['caption']}")
    programs.report(args, {"score": score.score, "signature": score.signature, "captions": len(score.per_item),
                           "path": str(args.out)}, f"{args.out}: mean {score.score:.4f} of {score.signature}")


# -- attention -----------------------------------------------------------------------------------------------

@torch.no_grad()
def run_attention(args: argparse.Namespace) -> None:
    """The [class] row of a layer of the encoder, a picture per photo."""
    sources = photos(args.images, args.out)
    device = programs.device_of(args.device)
    model = load(args.weights, device)
    vit = encoder_of(model)
    if not isinstance(vit, ViT) or not vit.config.class_token:
        raise InputError("this encoder has no [class] token, whose attention is drawn here",
                         source=args.weights)
    config, site = vit.config, vit.site
    layer = check_layer(vit, site, args.layer, "all", "--layer:")
    for part, opened, images, geometries in batches(sources, model):
        record = AttnRecord(sites=(site,), layers=[layer], queries="class")
        with autocast(device, programs.precision_of(args.precision, device)):
            vit.encode(images.to(device), attn=record)
        rows = record[site, layer][:, :, 0].float().cpu()  # (B, h, N)
        for source, photo, row, geometry in zip(part, opened, rows, geometries):
            looks = torch.cat([row.mean(0, keepdim=True), row])  # (1 + h, N)
            looks = looks if args.heads == "all" else looks[:1]
            grids = to_grid(looks, config.n_prefix, geometry.grid)
            maps = upsample(grids, shown(geometry, len(looks) + 1)).numpy()
            note = (f"row of the [class] token in encoder layer {layer} (of 0 to {config.depth - 1}) · "
                    f"{looks[0, :config.n_prefix].sum():.0%} of the mean's weight is on that token itself, "
                    "not on patches")
            figure = attention_sheet(photo, maps[0], list(maps[1:]), title=Path(source.name).name, note=note)
            save_figure(figure, source.target)
            programs.report(args, {"image": source.name, "layer": layer, "heads": config.num_heads,
                                   "path": str(source.target)}, str(source.target))


# -- positions -----------------------------------------------------------------------------------------------

def prefix_note(vit: ViT) -> str:
    """What the embeddings of the tokens before the patches have to do with those of the patches, in words."""
    config = vit.config
    names = ["[class] token"] * config.class_token + ["distillation token"] * config.dist_token
    names += [f"register {number}" for number in range(config.registers)]
    if not config.pos_prefix:
        return f"no position embedding: {', '.join(names)}" if names else ""
    notes = []
    for name, cosines in zip(names, prefix_similarity(vit.pos_embed, config.n_prefix, config.grid)):
        low, high = cosines[cosines.isfinite()].aminmax() if cosines.isfinite().any() else (None, None)
        notes.append(f"{name} with the patches: "
                     + ("none, all zeros" if low is None else f"{low:.2f} to {high:.2f}"))
    return " · ".join(notes).replace(" -", " \N{MINUS SIGN}")


@torch.no_grad()
def run_positions(args: argparse.Namespace) -> None:
    """The cosine similarities of a ViT's position embeddings, as a grid of grids."""
    vit = encoder_of(minivl.load(args.weights))
    if not isinstance(vit, ViT):
        raise InputError("its encoder is a convolutional network whose positions are computed, not learned: there is "
                         "no table of position embeddings to draw", source=args.weights)
    config = vit.config
    try:
        similarity = position_similarity(vit.pos_embed, config.n_prefix if config.pos_prefix else 0, config.grid)
    except InputError as error:
        raise InputError(str(error), source=args.weights) from None
    figure = positions_plot(similarity.numpy(), title=f"Position embeddings of {Path(args.weights).name}",
                            note=prefix_note(vit))
    save_figure(figure, args.out)
    programs.report(args, {"weights": str(args.weights), "grid": list(config.grid), "prefix": config.n_prefix,
                           "path": str(args.out)}, str(args.out))


# -- history -------------------------------------------------------------------------------------------------

def run_history(args: argparse.Namespace) -> None:
    """Curves of runs."""
    resolved = [run.resolve() for run in args.runs]
    names = [run.name for run in resolved]
    if len(set(resolved)) < len(resolved):
        raise InputError("a run is given twice")
    runs = {run.name if names.count(run.name) == 1 else str(run): read_history(run) for run in resolved}
    save_figure(history_plot(runs), args.out)
    programs.report(args, {"runs": [str(run) for run in args.runs], "path": str(args.out)}, str(args.out))


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    {"caption": run_caption, "ranking": run_ranking, "attention": run_attention, "positions": run_positions,
     "history": run_history}[args.command](args)


if __name__ == "__main__":
    programs.program(main)
