"""Fine-tune or train an image classifier: on photos in class folders, or (without --data) on the built-in scenes.

Several GPUs or machines share every batch: torchrun --nproc-per-node 4 train_p1.py ... (with --shard the weights too).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import minivl
from minivl import programs
from minivl.data.augment import Augment, check_mixing
from minivl.data.labels import Labelled, Skipped, scene_labels
from minivl.data.splits import check_readable, same_pictures, train_and_val
from minivl.errors import InputError, some
from minivl.images import Photo, Preprocessing
from minivl.models.clip import CLIP
from minivl.models.presets import PRESETS
from minivl.models.vit import ViT
from minivl.plotting.history import plot_history
from minivl.train import arguments
from minivl.train.classifying import ClassifyTask, Probe, pooled_features
from minivl.train.distributed import Processes, processes
from minivl.train.loop import fit
from minivl.train.plan import Plan
from minivl.train.run import SKIPPED, Run, read_history
from minivl.train.starting import check_finite

Say = Callable[[dict[str, Any], str], None]  # report a result, as JSON or text, from the first process alone
HERE = Path(__file__).resolve().parent
SMALL = "scenes_patch8_96"  # the model that is trained where none is named
VAL_START = 10_000_000  # validation scenes are numbered from here, so that no training scene is among them


# -- 1. parse ------------------------------------------------------------------------------------------------

def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data", help="a folder per class, or {label}_*.jpg with id2label.json; with train/ and val/ or "
                      "validation/; or oxford-iiit-pet:FOLDER; without it: the built-in scenes")
    data.add_argument("--val-fraction", type=float, help="share of each class to validate on, without val/")
    data.add_argument("--fold", type=fold_of, help="K/N, for cross-validation: validate on part K of N of the training "
                      "pictures; val/ is not looked at")
    data.add_argument("--scenes", type=int, default=4000, help="training scenes, without --data")
    data.add_argument("--val-scenes", type=int, default=500, help="validation scenes, without --data")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help=f"a preset (without it: what --init says it is, or {SMALL})")
    model.add_argument("--init", default="none", help="weights to start from: a file, a hub id, or none for random")
    model.add_argument("--image-size", type=int, help="side, if not the model's own")
    model.add_argument("--fit", choices=("crop", "squash"), help="crop keeps the aspect, squash shows all "
                       "(without it: as the weights were trained)")
    model.add_argument("--freeze", choices=("none", "encoder"), default="none", help="encoder: train the head alone, "
                       "on features computed once where nothing is augmented")
    model.add_argument("--reinit-head", action="store_true", help="a new head, even if the old one has these classes")
    model.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth of the last block")
    arguments.add_memory(model)
    arguments.add_optimiser(parser, of="pictures", lr=1e-4, batch_size=32)
    arguments.add_schedule(parser, of="pictures", epochs=10, warmup=50)
    augment = parser.add_argument_group("augmentation")
    augment.add_argument("--crop-scale", type=float, help="smallest share of the photo in a random crop (without "
                         "it: the model's own crop)")
    augment.add_argument("--flip", type=float, default=0.0, help="probability of mirroring")
    augment.add_argument("--auto", choices=("none", "autoaugment", "randaugment"), default="none",
                         help="learned policies")
    augment.add_argument("--magnitude", type=int, default=9, help="of RandAugment")
    augment.add_argument("--color", type=float, default=0.0, help="jitter of brightness, contrast, saturation")
    augment.add_argument("--erase", type=float, default=0.0, help="probability of erasing a rectangle")
    augment.add_argument("--mixup", type=float, default=0.0, help="alpha of its beta distribution; 0 = off")
    augment.add_argument("--cutmix", type=float, default=0.0, help="alpha of its beta distribution; 0 = off")
    augment.add_argument("--smoothing", type=float, default=0.0, help="label smoothing")
    arguments.add_run(parser)
    parser.add_common(precision="auto")
    programs.recipe_defaults(parser, argv, HERE / "recipes", "train_p1")
    args = parser.parse_args(argv)
    programs.check_common(args)
    check_said(args, programs.said(parser, argv))
    arguments.check_least(args, [(name, 1) for name in ("scenes", "val_scenes", "batch_size", "accumulate")])
    arguments.check_image_size(args)
    if args.val_fraction is not None and not args.data:
        raise InputError("--val-fraction splits the pictures of --data, which is not given")
    if args.fold and (args.val_fraction is not None or not args.data):
        raise InputError("--fold splits the training pictures of --data: give that, and no --val-fraction")
    if args.freeze == "encoder" and args.encoder_lr is not None:
        raise InputError("--encoder-lr trains the encoder, --freeze encoder keeps it: leave one out")
    if args.shard and (args.sam_local or probing(args)):
        raise InputError("--shard: with --sam-local no process has gradients of its own, and a head alone "
                         "(--freeze encoder, nothing augmented) has nothing to share out; leave one of the two out")
    return args


def check_said(args: argparse.Namespace, said: set[str]) -> None:
    """Refuse what is said and would change nothing; a recipe may know it for runs in which it does."""
    arguments.check_idle(args, said)
    if args.data and (idle := [name for name in ("scenes", "val_scenes") if name in said]):
        raise InputError(f"--{idle[0].replace('_', '-')} does not go with --data: these photos are what is read")
    if "magnitude" in said and args.auto != "randaugment":
        raise InputError(f"--magnitude changes nothing with --auto {args.auto}: it is for --auto randaugment")


def fold_of(text: str) -> str:
    if not re.fullmatch("[0-9]+/[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give K/N, such as 1/3")
    return text


# -- 2. build ------------------------------------------------------------------------------------------------

def build_model(args: argparse.Namespace) -> ViT:
    """The model to start from, its head still as it was."""
    torch.manual_seed(args.seed)
    if args.init == "none":
        loaded = minivl.create(args.model or SMALL)
    else:
        loaded = minivl.load(args.init, name=args.model).float()
        check_finite(loaded, args.init)
    model = loaded.visual if isinstance(loaded, CLIP) else loaded
    if not isinstance(model, ViT):
        raise InputError("is a captioner: a ViT, or a CLIP for its image tower, is needed",
                         source=args.model if args.init == "none" else args.init)
    model.site = "encoder"
    if model.preprocessing is None:
        raise InputError("its preprocessing is unknown: say with --model which preset it is", source=args.init)
    if args.fit:
        model.preprocessing = replace(model.preprocessing, mode=args.fit)
    if args.image_size is not None:
        model.resize(args.image_size)
        if args.init == "none":
            model.reset_parameters()  # a random table is drawn, not resized
    return model


def classifier(args: argparse.Namespace, model: ViT, names: Sequence[str], say: Say) -> ViT:
    """The same with a head for these classes: its own where it has them already."""
    had = model.config.num_classes
    kept = had == len(names) and model.class_names in (None, tuple(names))
    if not kept or args.reinit_head or not model.config.head_bias:
        torch.manual_seed(args.seed)
        model.config = replace(model.config, head_bias=True)
        model.replace_head(len(names))
        if args.init != "none":
            say({"new_head": len(names), "old_head": had}, f"a new head of {len(names)} classes"
                + (f" in place of the one of {had}" if had else ""))
    # the same weights in a model that drops paths
    config = replace(model.config, drop_path=args.drop_path)
    state, preprocessing = model.state_dict(), model.preprocessing
    with torch.device("meta"):
        model = ViT(config, preprocessing=preprocessing, class_names=tuple(names))
    model.load_state_dict(state, assign=True)
    model.checkpointing = args.checkpointing
    if args.freeze == "encoder":
        model.requires_grad_(False)
        for head in (model.head, model.head_dist):
            if head is not None:
                head.requires_grad_(True)
    return model


# -- 3. load -------------------------------------------------------------------------------------------------

class Data(NamedTuple):
    """Photos and the class of each, to train and to validate on."""

    photos: Sequence[Photo]
    labels: Sequence[int]
    val_photos: Sequence[Photo]
    val_labels: Sequence[int]
    names: tuple[str, ...]
    told: Any  # what a resumed run must find again
    ids: tuple[int, ...] | None = None  # numbers that an id2label.json gives the classes
    skipped: tuple[str, ...] = ()


def load_data(args: argparse.Namespace, preprocessing: Preprocessing, say: Say) -> Data:
    """The pictures; those that cannot be used are found before training, and listed."""
    if not args.data:
        size = PRESETS[SMALL].config.image_size[0]  # type: ignore[union-attr]
        train = scene_labels(args.scenes, seed=args.seed, size=size, progress=programs.progress)
        val = scene_labels(args.val_scenes, start=VAL_START, seed=args.seed, size=size, progress=programs.progress)
        return Data(train.images, train.labels, val.images, val.labels, train.names, [args.scenes, args.val_scenes])
    sets: list[Labelled] = []
    skipped: list[Skipped] = []
    part, _, parts = (args.fold or "").partition("/")
    fold = (int(part), int(parts)) if args.fold else None
    for one in train_and_val(args.data, val_fraction=args.val_fraction, fold=fold, seed=args.seed):
        good, broken = check_readable(one, programs.progress, preprocessing=preprocessing, every_class=not sets)
        sets.append(good)
        skipped += [*one.skipped, *broken]
    photos, val_photos = sets
    twice = same_pictures(photos, val_photos)
    if twice:
        say({"in_both": len(twice)}, f"{len(twice)} validation pictures are training pictures, byte for byte, such as "
            f"{twice[0][1]} and {twice[0][0]}: scores will look too good")
    if skipped:
        say({"skipped": len(skipped)}, f"{len(skipped)} files are left out, such as {skipped[0]}")
    told = [[str(file.name) for file in one.files] + list(one.labels) for one in sets]
    return Data(photos.files, photos.labels, val_photos.files, val_photos.labels, photos.names, told,
                photos.ids, tuple(map(str, skipped)))


def build_augment(args: argparse.Namespace, preprocessing: Preprocessing) -> Augment:
    """How training pictures become tensors."""
    check_mixing(args.mixup, args.cutmix, 1.0)
    return Augment(preprocessing, seed=args.seed, flip=args.flip, auto=args.auto, magnitude=args.magnitude,
                   color=args.color, erase=args.erase,
                   crop_scale=None if args.crop_scale is None else (args.crop_scale, 1.0))


def build_task(args: argparse.Namespace, model: ViT, data: Data, augment: Augment, group: Processes) -> ClassifyTask:
    """Batches, loss and scores."""
    photos: Sequence[Photo] | Tensor = data.photos
    val_photos: Sequence[Photo] | Tensor = data.val_photos
    stored = probing(args)
    if stored:
        photos, val_photos = (pooled_features(model, part, workers=args.workers, precision=args.precision,
                                              progress=programs.progress) for part in (data.photos, data.val_photos))
    about = {"data": args.data or "scenes", "program": "train_p1.py", "model": args.model, "init": args.init}
    if data.ids is not None:
        about["id2label"] = dict(zip(map(str, data.ids), data.names))
    return ClassifyTask(
        model, photos, data.labels, val_photos, data.val_labels, augment=None if stored else augment,
        batch_size=args.batch_size, accumulate=args.accumulate, smoothing=args.smoothing, mixup=args.mixup,
        cutmix=args.cutmix, seed=args.seed, workers=args.workers, processes=group, about=about,
        progress=programs.progress)


def probing(args: argparse.Namespace) -> bool:
    """Whether features can be computed once: the encoder is frozen, and no picture changes."""
    changes = (args.crop_scale, args.flip, args.auto != "none", args.color, args.erase, args.mixup, args.cutmix)
    return args.freeze == "encoder" and not any(changes)


# -- 4. to 6. loop, evaluate, save ---------------------------------------------------------------------------

def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    with processes(programs.device_of(args.device), args.shard) as (group, device):
        args.precision = programs.precision_of(args.precision, device)
        plan = arguments.plan_of(args)
        run = Run(args.out)
        known = arguments.known_settings(args, ["data"])
        group.first_then_all(lambda: run.check(args.resume, known), lambda: None)
        with run.stoppable(group.first):
            train(args, plan, group, device)


def train(args: argparse.Namespace, plan: Plan, group: Processes, device: torch.device) -> None:
    """From data to the best weights."""
    def say(values: dict[str, Any], text: str) -> None:
        if group.first:
            programs.report(args, values, text)

    model = build_model(args)
    assert model.preprocessing is not None
    augment = build_augment(args, model.preprocessing)
    data = load_data(args, model.preprocessing, say)
    model = classifier(args, model, data.names, say).to(device)
    task = build_task(args, model, data, augment, group)
    report_start(model, data, say)
    board = tensorboard(args.out) if group.first else None
    files = {SKIPPED: "".join(f"{line}\n" for line in data.skipped)} if data.skipped else None
    for row in fit(model, task, plan, out=args.out, settings=arguments.settings_of(args, data.told, ["data"]),
                   resume=args.resume, processes=group, wrap=Probe if probing(args) else None, compiled=args.compile,
                   files=files, progress=programs.progress if group.first else None):
        if not group.first:
            continue
        say(row, f"epoch {row['epoch']:>3}  loss {row['train_loss']:.3f}  validation loss {row['val_loss']:.3f}  "
            f"top-1 {row['top1']:.4f}  top-5 {row['top5']:.4f}  {row['seconds']:.0f} s")
        plot_history(args.out, read_history(args.out))
        if board is not None:
            board(row)
    if group.first:
        finish(args, len(data.val_labels))


def tensorboard(folder: Path) -> Callable[[Mapping[str, Any]], None] | None:
    """Writes the row of an epoch as TensorBoard events, where that package is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter
    writer: list[Any] = []

    def write(row: Mapping[str, Any]) -> None:
        if not writer:  # it makes the folder
            writer.append(SummaryWriter(str(folder), purge_step=row["step"]))
        for name, value in row.items():
            if name not in ("epoch", "step"):
                writer[0].add_scalar(name, value, row["step"])
        writer[0].flush()

    return write


def report_start(model: ViT, data: Data, say: Say) -> None:
    """Say what is about to be trained."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say({"images": len(data.labels), "val_images": len(data.val_labels), "classes": len(data.names),
         "trained_parameters": trained},
        f"{len(data.labels)} training and {len(data.val_labels)} validation pictures of {len(data.names)} classes "
        f"({some(data.names, 5)}), {trained / 1e6:.2f} M trained parameters")


def finish(args: argparse.Namespace, val_pictures: int) -> None:
    """Say what came out."""
    rows = [row for row in read_history(args.out) if "epoch" in row]
    if not rows:
        return
    best = max(rows, key=lambda row: row["top1"])
    programs.report(args, {"best": str(args.out / "best.safetensors"), **best},
                    f"best: top-1 {best['top1']:.4f} of {val_pictures} validation pictures after epoch "
                    f"{best['epoch']}: {args.out / 'best.safetensors'}")


if __name__ == "__main__":
    programs.program(main)
