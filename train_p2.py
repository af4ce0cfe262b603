"""Train on photographs with their captions, or (without --images) on the built-in scenes: a captioner, by
cross-entropy or (--objective scst) by what a metric says of its own captions; or with --objective contrastive an
image-text pair, which tells what fits together.

Several GPUs or machines share every batch: torchrun --nproc-per-node 4 train_p2.py ... (with --shard the weights too).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import minivl
from minivl import programs
from minivl.data.augment import View
from minivl.data.pictures import has_shards
from minivl.data.scenes import Scenes
from minivl.errors import InputError, counted
from minivl.loading import weight_folders
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP
from minivl.models.vit import POOLS, ViT
from minivl.plotting.history import plot_history
from minivl.train import arguments, captioning, contrasting, features
from minivl.train.caption_batches import READ
from minivl.train.clip_features import image_features, load_clip
from minivl.train.distributed import Processes, processes
from minivl.train.looks import choose_look
from minivl.train.loop import Plan, fit
from minivl.train.objectives import OWN, check_rewards, choose_new, choose_own, new_help, own_help
from minivl.train.pictures import Data, Photos, Pixels, Views, draw_scenes, open_photos, told_hash
from minivl.train.rewards import Rewards
from minivl.train.run import Run, read_history
from minivl.train.selfcritical import BASELINES, SelfCriticalTask
from minivl.train.starting import build_encoder, build_model, build_tokenizer, load_start

log = logging.getLogger("train_p2")
HERE = Path(__file__).resolve().parent
LOOK_SCENES = 300  # training scenes on which layer and heads to look at are fixed
VAL_START = 10_000_000  # validation scenes are numbered from here, so that no training scene is among them


# -- 1. parse ------------------------------------------------------------------------------------------------

def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--objective", choices=tuple(OWN), default="caption",
                        help="caption: cross-entropy; scst: a captioner's own samples, judged by a metric; "
                        "contrastive: an image-text pair, as CLIP is trained")
    data = parser.add_argument_group("data")
    data.add_argument("--images", type=Path, help="folder of photos; or tar shards in the WebDataset layout: a .tar, a "
                      "folder of them or a pattern such as 'train-{000..099}.tar'; without it: the built-in scenes")
    data.add_argument("--captions", type=Path, help="COCO-JSON, Karpathy JSON or Flickr token file, which names photos "
                      "of --images; without it: in .json or .txt beside each photo, in shards too")
    data.add_argument("--val-images", type=Path, help="photos for validation, if they are not among --images")
    data.add_argument("--val-captions", type=Path, help="their captions, as --captions")
    data.add_argument("--split", help="split of --captions, for a Karpathy JSON")
    data.add_argument("--val-split", help="split of --val-captions")
    data.add_argument("--scenes", type=int, default=6000, help="training scenes, without --images")
    data.add_argument("--val-scenes", type=int, default=500, help="validation scenes, without --images")
    data.add_argument("--nouns", action=argparse.BooleanOptionalAction, help=own_help(
        "nouns", 'without --images: train also on captions that name one thing ("a tree"), as class names do'))
    model = parser.add_argument_group("model")
    model.add_argument("--init", help="start from a trained captioner (or, with --objective contrastive, a pair): its "
                       "weights, tokenizer and preprocessing")
    model.add_argument("--encoder", help=new_help("encoder", "weights of a ViT, or of a captioner or CLIP, for theirs; "
                                                  "or a preset to start at random"))
    model.add_argument("--freeze-encoder", action=argparse.BooleanOptionalAction, default=False,
                       help="keep the encoder; its features are computed once")
    model.add_argument("--unfreeze", type=int, help="train only so many of the encoder's last blocks and its last norm")
    model.add_argument("--image-size", type=int, help="side of the pictures, if not the model's own: its position "
                       "table is resized")
    model.add_argument("--fit", choices=("squash", "crop"),
                       help=new_help("fit", "squash shows the whole picture, crop keeps its aspect"))
    model.add_argument("--width", type=int, help=new_help("width", "of the decoder or text tower"))
    model.add_argument("--depth", type=int, help=new_help("depth", "layers of the decoder or text tower"))
    model.add_argument("--heads", type=int, help=new_help("heads", "of the decoder or text tower"))
    model.add_argument("--norm", choices=("pre", "post"),
                       help=own_help("norm", "layer norm before or after each branch"))
    model.add_argument("--positions", choices=("learned", "sinusoidal"),
                       help=own_help("positions", "position table of the text"))
    model.add_argument("--tied", action=argparse.BooleanOptionalAction, help=own_help("tied", "head = word table"))
    model.add_argument("--dropout", type=float,
                       help=new_help("dropout", "of the decoder or text tower") + "; of --init: as the file says")
    model.add_argument("--embed-dim", type=int, help=own_help("embed_dim", "width of the features of a pair"))
    model.add_argument("--pool", choices=POOLS, help="what a pair makes one feature of a picture from: the [class] "
                       "token, the mean of the patches or both (without it: as the encoder does)")
    arguments.add_memory(model, "blocks of the encoder")
    words = parser.add_argument_group("words")
    words.add_argument("--tokenizer", type=Path, help="a tokenizer.json; without it one is trained on the captions")
    words.add_argument("--pieces", choices=("word", "bpe"), help=new_help("pieces", "what is trained"))
    words.add_argument("--vocab-size", type=int, help="largest vocabulary")
    words.add_argument("--min-count", type=int, help=new_help("min_count", "rarer words are unknown"))
    words.add_argument("--max-len", type=int, help=new_help("max_len", "longest caption, end token counted")
                       + "; with --init: at most what the file has room for")
    arguments.add_optimiser(parser, of="captions (scst: pictures)", lr=None, batch_size=None, ema=0.999,
                            told=own_help)
    arguments.add_schedule(parser, of="pictures", epochs=10, warmup=200)
    train = parser.add_argument_group("training")
    train.add_argument("--refs", type=int, help=own_help(
        "refs", "captions of a picture in a batch, which share its memory"))
    train.add_argument("--read", choices=READ, help=own_help(
        "read", "captions of a picture read in an epoch: refs = as many as --refs, drawn; all = every one just once, "
        "--refs at a time; one = one drawn, with --refs 1"))
    train.add_argument("--bucket", action=argparse.BooleanOptionalAction, help=own_help(
        "bucket", "pictures whose captions are of like length together, so that less is padding"))
    train.add_argument("--scheduled-sampling", type=float, help=own_help(
        "scheduled_sampling", "share of read words that are the model's own at the end of training, rising from 0"))
    train.add_argument("--smoothing", type=float, help=own_help("smoothing", "label smoothing"))
    train.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None,
                       help="photos are shown mirrored half of the time, although captions may say left or right: with "
                       "--freeze-encoder by features of both kinds (on unless --no-mirror), else as they are read (off "
                       "unless asked for)")
    train.add_argument("--views", type=int, help="versions of each training photo, of which an epoch shows one: the "
                       "photo itself, and parts of it drawn at random, half of them mirrored if --mirror; with "
                       "--freeze-encoder their features are stored")
    train.add_argument("--crop-scale", type=float, help="smallest share of the photo in such a part (default: "
                       f"{View.crop_scale})")
    train.add_argument("--drop-tokens", type=float,
                       help=own_help("drop_tokens", "share of visual tokens hidden in training"))
    train.add_argument("--drop-words", type=float,
                       help=own_help("drop_words", "share of read words made unknown in training"))
    train.add_argument("--beams", type=int, help=own_help("beams", "of validation captions"))
    scst = parser.add_argument_group("self-critical training")
    scst.add_argument("--samples", type=int, help=own_help("samples", "captions drawn of each picture"))
    scst.add_argument("--baseline", choices=BASELINES, help=own_help(
        "baseline", "what a sample is compared with: the picture's other samples, or its greedy caption"))
    scst.add_argument("--temperature", type=float, help=own_help("temperature", "of the samples"))
    scst.add_argument("--reward-cider", type=float, help=own_help(
        "reward_cider", "weight of CIDEr-D, by the document frequencies of the training captions"))
    scst.add_argument("--reward-clip", type=float, help=own_help("reward_clip", "weight of CLIPScore"))
    scst.add_argument("--reward-weights", help="the CLIP whose CLIPScore is rewarded")
    scst.add_argument("--scst-dropout", action=argparse.BooleanOptionalAction,
                      help=own_help("scst_dropout", "keep dropout in the pass with gradients"))
    run = arguments.add_run(parser)
    run.add_argument("--features", type=arguments.folder, default=weight_folders()[-1].parent / "features",
                     help="cache of frozen features")
    parser.add_common(precision="auto")
    programs.recipe_defaults(parser, argv, HERE / "recipes", "train_p2")
    args = parser.parse_args(argv)
    programs.check_common(args)
    choose_new(args)
    choose_own(args)
    check_said(args, programs.said(parser, argv))
    check(args)
    return args


def check_said(args: argparse.Namespace, said: set[str]) -> None:
    """Refuse what is said and would change nothing; a recipe may know it for runs in which it does."""
    arguments.check_idle(args, said)
    for names, other, why in (
            (("scenes", "val_scenes"), "images", "these photos are what is read"),
            (("pieces", "vocab_size", "min_count"), "tokenizer", "that file has its words")):
        if getattr(args, other) and (idle := [name for name in names if name in said]):
            raise InputError(f"--{idle[0].replace('_', '-')} does not go with --{other}: {why}")
    if "features" in said and not keeps_features(args):
        raise InputError("--features changes nothing here: it is for features of photos with --freeze-encoder, and for "
                         "indexes of shards")


def keeps_features(args: argparse.Namespace) -> bool:
    """Whether anything is written to --features."""
    places = [(args.images, args.captions), (args.val_images or args.images, args.val_captions)]
    return bool(args.images) and (args.freeze_encoder or any(
        captions is None or has_shards(images) for images, captions in places))


def check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other or are out of range."""
    check_photos(args)
    if keeps_features(args) and not args.features.is_dir():  # one that is there may be complete, and closed to writing
        if args.features.exists():
            raise InputError(f"--features {args.features}: is a file, a folder is needed: name another")
        programs.check_place("--features", args.features)
    if args.mirror and not args.images:
        raise InputError("--mirror is for --images: captions of the built-in scenes say where things are")
    frozen_photos = bool(args.images and args.freeze_encoder)
    args.mirror = frozen_photos if args.mirror is None else args.mirror
    if args.views is not None and not args.images:
        raise InputError("--views is for --images: captions of the built-in scenes say where things are")
    if args.crop_scale is not None and (args.views is None or not 0 < args.crop_scale <= 1):
        raise InputError(f"--crop-scale {args.crop_scale}: " + ("it is for --views, which makes parts of photos"
                         if args.views is None else "give a share above 0, at most 1"))
    if args.views is not None and args.crop_scale is None:
        args.crop_scale = View.crop_scale
    if args.nouns and args.images:
        raise InputError("--nouns is for the built-in scenes: captions of photos do not tell which words are things")
    if args.freeze_encoder:
        for name, default in (("unfreeze", None), ("encoder_lr", None), ("layer_decay", 1.0), ("checkpointing", False)):
            if getattr(args, name) != default:
                raise InputError(f"--{name.replace('_', '-')} is for an encoder that is trained, --freeze-encoder "
                                 "keeps it: leave one out")
    pair = args.objective == "contrastive"
    if pair:
        check_pair(args)
    if args.objective == "scst":
        check_rewards(args)
    arguments.check_least(args, (("scenes", 2 if pair else 1), ("val_scenes", 2), ("refs", 1), ("beams", 1),
                                 ("max_len", 2 if pair else 1), ("min_count", 1), ("embed_dim", 1), ("unfreeze", 1),
                                 ("accumulate", 1), ("samples", 1), ("batch_size", 1), ("views", 2), ("vocab_size", 1)))
    arguments.check_image_size(args)
    if args.refs is not None and args.batch_size < args.refs * (2 if pair else 1):
        raise InputError(f"--batch-size {args.batch_size} must hold at least the --refs {args.refs} of "
                         + ("each of two pictures, to be told apart" if pair else "one picture"))
    if args.read == "one" and args.refs != 1:
        raise InputError(f"--read one: one caption of a picture is read in an epoch, and --refs {args.refs} are to be "
                         "in a batch; give --refs 1")
    if args.scheduled_sampling is not None and not 0 <= args.scheduled_sampling <= 1:
        raise InputError(f"--scheduled-sampling {args.scheduled_sampling}: give a share from 0 to 1")
    for name in ("dropout", "smoothing", "drop_tokens", "drop_words"):
        if (value := getattr(args, name)) is not None and not 0 <= value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give 0 or more, less than 1")


def check_photos(args: argparse.Namespace) -> None:
    """Refuse photos without captions, captions without photos, and splits of no captions."""
    for name in ("split", "val_split"):
        if getattr(args, name) is not None and not args.images:
            raise InputError(f"--{name.replace('_', '-')} is one of the --captions, which are not given")
    told = any((args.captions, args.val_captions, args.val_images))
    if told and not args.images or args.images and not (args.val_images or (args.captions and args.val_captions)):
        raise InputError("--images, --captions and --val-captions go together; where captions lie beside their photos "
                         "or in shards with them, --images and --val-images")


def check_pair(args: argparse.Namespace) -> None:
    """Refuse what makes no sense where every picture of a batch is compared with every caption."""
    if args.accumulate > 1:
        raise InputError("--accumulate does not go with --objective contrastive: parts of a batch are other contrasts, "
                         "with fewer captions to tell apart")
    if args.sam_local:
        raise InputError("--sam-local does not go with --objective contrastive: the loss of a share of the batch needs "
                         "the features of all processes")
    if args.shard:
        raise InputError("--shard does not go with --objective contrastive: the factor on the cosines is one number, "
                         "of which processes cannot keep parts; torchrun without --shard shares every batch")


# -- 2. build (see minivl.train.starting) and 3. load ---------------------------------------------------------

def load_photos(args: argparse.Namespace) -> tuple[Data, Data]:
    """Photos to train and to validate on, every one of them being there."""
    cache = args.features / "shards"
    train, val = (open_photos(*where, cache, programs.progress) for where in (
        (args.images, args.captions, args.split),
        (args.val_images or args.images, args.val_captions, args.val_split)))
    try:  # before features take long
        if args.objective != "contrastive":
            captioning.check_references(val.references())
    except InputError as error:
        raise InputError(f"{told_by(args, 'val_')}: {error}") from None
    if not args.val_images and (both := {*train.names} & {*val.names}):
        log.warning("%d of %d validation photos are training photos, such as %s: scores will look too good", len(both),
                    len(val.names), min(both))
    if args.objective == "contrastive":
        contrasting.check_counts(len(train.names), len(val.names),
                                 source=f"{told_by(args)}, {told_by(args, 'val_')}")
    return train, val


def told_by(args: argparse.Namespace, which: str = "") -> str:
    """The option that captions come from."""
    name = f"{which}{'captions' if getattr(args, f'{which}captions') else 'images'}"
    return f"--{name.replace('_', '-')} {getattr(args, name)}"


def load_images(args: argparse.Namespace, data: Data, model: Captioner | CLIP, encoder: ViT,
                training: bool) -> features.Images:
    """What the model is given: pictures, or their features where the encoder is frozen; to train on in all versions."""
    images = load_tokens(args, data, model, encoder, training)
    if args.freeze_encoder and isinstance(model, CLIP):
        return contrasting.pooled(model.visual, images, progress=programs.progress)
    return images


def load_tokens(args: argparse.Namespace, data: Data, model: Captioner | CLIP, encoder: ViT,
                training: bool) -> features.Images:
    """Pictures, or all tokens of each where the encoder is frozen."""
    pictures = data.pictures
    if isinstance(pictures, Pixels):
        return features.encode_images(encoder, pictures, dtype=args.precision,
                                      progress=programs.progress) if args.freeze_encoder else pictures
    if not args.freeze_encoder:
        if not training:
            return Photos(pictures, model)
        return Photos(pictures, model, args.mirror, args.views or 1, args.crop_scale or 1, args.seed)
    shown: list[dict[str, Any]] = [{}]
    if training and args.views:
        shown += [{"view": View(number, args.seed, args.crop_scale, 0.5 * args.mirror)}
                  for number in range(1, args.views)]
    elif training and args.mirror:
        shown += [{"flip": True}]
    features.check_closed(encoder, args.features, args.precision, shown)
    hashes = features.hash_photos(pictures, programs.progress)
    views = [features.compute_features(encoder, pictures, args.features, dtype=args.precision,
                                       hashes=hashes, workers=args.workers, progress=programs.progress, **how)
             for how in shown]
    return Views(views) if len(views) > 1 else views[0]


def versions(args: argparse.Namespace) -> int:
    """How many there are of each training picture."""
    return args.views or (2 if args.mirror else 1)


def workers_of(args: argparse.Namespace, images: features.Images) -> int:
    """Processes that read pictures: none where they lie in memory."""
    return 0 if isinstance(images, (Pixels, torch.Tensor)) else args.workers


def told_notes(args: argparse.Namespace) -> dict[str, Any]:
    """What the weights say of where they come from."""
    start = {"init": args.init} if args.init else {"encoder": args.encoder}
    return {"data": str(args.captions or args.images or "scenes"), **start}


def caption_task(args: argparse.Namespace, model: Captioner, images: features.Images, data: Data,
                 val_images: features.Images, val_data: Data, group: Processes) -> captioning.CaptionTask:
    """Batches, loss and scores of captions; of scst the scores alone."""
    read = {} if args.objective == "scst" else {
        "batch_size": args.batch_size, "refs": args.refs, "smoothing": args.smoothing, "drop_tokens": args.drop_tokens,
        "drop_words": args.drop_words, "sampling": args.scheduled_sampling, "read": args.read, "bucket": args.bucket,
        "epochs": args.epochs, "accumulate": args.accumulate}
    return captioning.CaptionTask(
        model, images, data.captions, val_images, val_data.references(),
        remember=captioning.from_features if args.freeze_encoder else Captioner.encode, seed=args.seed,
        views=versions(args), beams=args.beams, max_len=args.max_len, processes=group,
        workers=workers_of(args, images),
        notes=told_notes(args), progress=programs.progress, **read)


def scst_task(args: argparse.Namespace, model: Captioner, images: features.Images, data: Data,
              scored: captioning.CaptionTask, group: Processes, device: torch.device) -> SelfCriticalTask:
    """Samples and their rewards."""
    clip = load_clip(args.reward_weights, device) if args.reward_weights else None
    looks = None
    if clip is not None:
        photos = data.pictures.photos() if isinstance(data.pictures, Pixels) else data.pictures
        looks = image_features(clip, photos, precision=args.precision, workers=args.workers, progress=programs.progress)
    rewards = Rewards(data.captions, {"cider": args.reward_cider, "clip": args.reward_clip}, clip=clip,
                      images=looks, precision=args.precision)
    return SelfCriticalTask(
        scored, model, images, rewards, remember=captioning.from_features if args.freeze_encoder else Captioner.encode,
        batch_size=args.batch_size, samples=args.samples, baseline=args.baseline, temperature=args.temperature,
        max_len=args.max_len, dropout=args.scst_dropout, accumulate=args.accumulate, precision=args.precision,
        seed=args.seed, views=versions(args),
        workers=workers_of(args, images), processes=group)


def contrast_task(args: argparse.Namespace, model: CLIP, images: features.Images, data: Data,
                  val_images: features.Images, val_data: Data, group: Processes) -> contrasting.ContrastTask:
    """Batches, loss and scores of an image-text pair."""
    told = told_notes(args)
    return contrasting.ContrastTask(
        model, images, data.captions, val_images, val_data.captions,
        batch_size=args.batch_size, refs=args.refs, max_len=args.max_len, seed=args.seed, views=versions(args),
        drop_words=args.drop_words, workers=workers_of(args, images),
        processes=group,
        notes={"name": f"an image-text pair trained by minivl on {told['data']}", **told},
        progress=programs.progress)


# -- 4. to 6. loop, evaluate, save ---------------------------------------------------------------------------

def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    with processes(programs.device_of(args.device), args.shard) as (group, device):
        args.precision = programs.precision_of(args.precision, device)
        plan = arguments.plan_of(args)
        run = Run(args.out)
        later = ["max_len"] if args.max_len is None else []  # the file of --init says it
        known = arguments.known_settings(args, ["features", *later])
        group.first_then_all(lambda: run.check(args.resume, known), lambda: None)
        with run.stoppable(group.first):
            train(args, plan, run, group, device)


def train(args: argparse.Namespace, plan: Plan, run: Run, group: Processes, device: torch.device) -> None:
    """From data to the best weights."""
    start = load_start(args) if args.init else None
    encoder = build_encoder(args, start).to(device)
    if args.images:
        data, val_data = group.first_then_all(lambda: load_photos(args), lambda: load_photos(args))
    else:
        assert encoder.preprocessing is not None
        data = draw_scenes(0, args.scenes, encoder.preprocessing, bool(args.nouns), programs.progress)
        val_data = draw_scenes(VAL_START, args.val_scenes, encoder.preprocessing, False, programs.progress)
    tokenizer = build_tokenizer(args, data.texts(), start)
    model = build_model(args, encoder, tokenizer, start).to(device)
    images, val_images = (load_images(args, one, model, encoder, one is data) for one in (data, val_data))
    task: captioning.CaptionTask | contrasting.ContrastTask | SelfCriticalTask
    if isinstance(model, CLIP):
        task = contrast_task(args, model, images, data, val_images, val_data, group)
    else:
        task = scored = caption_task(args, model, images, data, val_images, val_data, group)
        if args.objective == "scst":
            task = scst_task(args, model, images, data, scored, group, device)

    settings = {**arguments.settings_of(args, None, ["features"]),
                "data_hash": told_hash([data, val_data], tokenizer.to_json())}
    if group.first:
        report_start(args, model, len(data.names), task.cut)
    for row in fit(model, task, plan, out=args.out, settings=settings, resume=args.resume, processes=group,
                   wrap=task.wrap, compiled=args.compile,
                   progress=programs.progress if group.first else None):
        if group.first:
            programs.report(args, row, f"epoch {row['epoch']:>3}  loss {row['train_loss']:.3f}  validation loss "
                            f"{row['val_loss']:.3f}  {scores_text(row)}  {row['seconds']:.0f} s")
            plot_history(args.out, read_history(args.out))
    if group.first:
        finish(args, run, len(val_data.names))


def report_start(args: argparse.Namespace, model: Captioner | CLIP, pictures: int, cut: int | None) -> None:
    """Say what is about to be trained; cut: captions that are read in part, None where none are read."""
    assert model.tokenizer is not None
    words = model.tokenizer.vocab_size
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    told = {"images": pictures, "vocabulary": words, "trained_parameters": trained}
    text = f"{counted(pictures, 'training picture')}, vocabulary {words}, {trained / 1e6:.2f} M trained parameters"
    if cut is not None:
        told["cut_captions"], text = cut, f"{text}, {counted(cut, 'caption')} cut at {args.max_len} tokens"
    programs.report(args, told, text)


def scores_text(scores: Mapping[str, Any]) -> str:
    """The scores of an objective, in words."""
    if "cider_d" in scores:
        return f"CIDEr-D {scores['cider_d']:.3f}"
    ways = {way: "/".join(f"{100 * scores[f'{way}_r{k}']:.1f}" for k in contrasting.KS)
            for way in ("image_to_text", "text_to_image")}
    ks = "/".join(map(str, contrasting.KS))
    return f"R@{ks} % picture to text {ways['image_to_text']}, text to picture {ways['text_to_image']}"


def finish(args: argparse.Namespace, run: Run, val_pictures: int) -> None:
    """Say what came out, if anything; for a captioner of scenes, fix layer and heads to look at on training scenes."""
    best = args.out / "best.safetensors"
    if not best.exists():  # the time limit came before the first epoch was over
        return
    plot_history(args.out, read_history(args.out))
    model = minivl.load(best)
    assert isinstance(model, (Captioner, CLIP))
    if isinstance(model, Captioner) and not args.images:
        note_look(args, run, model, best)
    scores = model.notes["scores"]
    how = f" with {args.beams} beams" if isinstance(model, Captioner) else ""
    programs.report(args, {"best": str(best), **scores}, f"best: {scores_text(scores)}{how} on {val_pictures} "
                    f"validation pictures ({scores['signature']}): {best}")


def note_look(args: argparse.Namespace, run: Run, captioner: Captioner, best: Path) -> None:
    """Write down which layer and heads to look at, in the weights and in the run's config."""
    if "look" not in captioner.notes:
        assert captioner.preprocessing is not None  # it was trained by it
        scenes = list(Scenes(min(LOOK_SCENES, args.scenes), size=captioner.preprocessing.size[0]))
        if look := choose_look(captioner, scenes, args.beams, progress=programs.progress):
            captioner.notes["look"] = look
            minivl.save(captioner, best)
        else:
            programs.report(args, {"look": None}, "the captions name nothing yet: no layer and heads to look at")
    run.note("look", captioner.notes.get("look"))


if __name__ == "__main__":
    programs.program(main)
