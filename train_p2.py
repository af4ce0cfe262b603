"""Train on photographs with their captions, or (without --images) on the built-in scenes: a captioner, by
cross-entropy or (--objective scst) by what a metric says of its own captions; or with --objective contrastive an
image-text pair, which tells what fits together.

Several GPUs or machines share every batch: torchrun --nproc-per-node 4 train_p2.py ... (with --shard the weights too).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import minivl
from minivl import programs
from minivl.data.captions import read_captions
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.loading import weight_folders
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.presets import PRESETS
from minivl.models.vit import POOLS, ViT
from minivl.plotting.history import plot_history
from minivl.text.tokenizer import Tokenizer
from minivl.train import arguments, captioning, contrasting, features
from minivl.train.caption_batches import READ
from minivl.train.clip_features import image_features, load_clip
from minivl.train.distributed import Processes, processes
from minivl.train.looks import choose_look
from minivl.train.loop import Plan, fit
from minivl.train.objectives import NEW, OWN, check_rewards, choose_new, choose_own, new_help, own_help
from minivl.train.optim import freeze_encoder
from minivl.train.rewards import Rewards
from minivl.train.run import Run, read_history
from minivl.train.selfcritical import BASELINES, SelfCriticalTask

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
    data.add_argument("--images", type=Path, help="folder of photos; without it: the built-in scenes")
    data.add_argument("--captions", type=Path, help="COCO-JSON, Karpathy JSON or Flickr token file")
    data.add_argument("--val-captions", type=Path, help="the same for validation")
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
    model.add_argument("--freeze-encoder", action="store_true", help="keep the encoder; its features are computed once")
    model.add_argument("--unfreeze", type=int, help="train only so many of the encoder's last blocks and its last norm")
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
                       help="with --freeze-encoder: also features of the mirrored photos (on unless --no-mirror)")
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
    run.add_argument("--features", type=Path, default=weight_folders()[-1].parent / "features",
                     help="cache of frozen features")
    parser.add_common(precision="auto")
    programs.recipe_defaults(parser, argv, HERE / "recipes", "train_p2")
    args = parser.parse_args(argv)
    programs.check_common(args)
    choose_new(args)
    choose_own(args)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other or are out of range."""
    real = (args.images, args.captions, args.val_captions)
    if any(real) and not all(real):
        raise InputError("--images, --captions and --val-captions go together")
    frozen_photos = bool(args.images and args.freeze_encoder)
    if args.mirror and not frozen_photos:
        raise InputError("--mirror is for --images with --freeze-encoder: it doubles the stored features")
    args.mirror = frozen_photos if args.mirror is None else args.mirror
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
                                 ("accumulate", 1), ("samples", 1), ("batch_size", 1)))
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


# -- 2. build ------------------------------------------------------------------------------------------------

def load_start(args: argparse.Namespace) -> Captioner | CLIP:
    """The model of --init, with the dropout of the command line; --max-len is settled by its room."""
    loaded = minivl.load(args.init).float()
    kind: type[Captioner] | type[CLIP] = CLIP if args.objective == "contrastive" else Captioner
    if not isinstance(loaded, kind):
        raise InputError(f"is no {'captioner' if kind is Captioner else 'image-text pair'}, which --init with "
                         f"--objective {args.objective} starts from; an encoder alone is for --encoder",
                         source=args.init)
    if loaded.tokenizer is None or loaded.preprocessing is None:
        raise InputError("has no tokenizer, or its preprocessing is unknown: a captioner or pair as train_p2.py writes "
                         "it is needed", source=args.init)
    part = loaded.decoder.config if isinstance(loaded, Captioner) else loaded.text.config
    room = part.max_len - 1
    if args.max_len is not None and args.max_len > room:
        raise InputError(f"--max-len {args.max_len}: it has room for {room} tokens", source=args.init)
    args.max_len = min(NEW["max_len"], room) if args.max_len is None else args.max_len
    tower_of(loaded, args.init)
    told: dict[str, Any] = {"tokenizer": loaded.tokenizer, "preprocessing": loaded.preprocessing}
    rate = {} if args.dropout is None else {"dropout": args.dropout}
    model: Captioner | CLIP
    if isinstance(loaded, Captioner):  # what was found out about the old weights does not hold for the new
        notes = {key: value for key, value in loaded.notes.items() if key not in ("look", "scores")}
        model = Captioner(replace(loaded.config, decoder=replace(loaded.config.decoder, **rate)), notes=notes, **told)
    else:
        notes = {key: value for key, value in loaded.notes.items() if key != "scores"}
        model = CLIP(replace(loaded.config, text=replace(loaded.config.text, **rate)), notes=notes, **told)
    model.load_state_dict(loaded.state_dict())
    return model


def tower_of(loaded: ViT | Captioner | CLIP, source: str) -> ViT:
    """The ViT that sees pictures in a model."""
    tower = loaded.visual if isinstance(loaded, CLIP) else loaded.encoder if isinstance(loaded, Captioner) else loaded
    if not isinstance(tower, ViT):
        raise InputError("is a captioner over a grid of convolutions: a ViT is trained here, or that of a captioner or "
                         "a CLIP", source=source)
    return tower


def build_encoder(args: argparse.Namespace, start: Captioner | CLIP | None) -> ViT:
    """The ViT of --encoder, or a copy of that of --init, without a head."""
    loaded: ViT | Captioner | CLIP
    if start is not None:
        loaded = start
    elif args.encoder in PRESETS and "/" not in args.encoder:  # with an owner it is a hub id, with its weights
        if args.freeze_encoder or args.unfreeze:
            raise InputError(f"--{'freeze-encoder' if args.freeze_encoder else 'unfreeze'}: {args.encoder} is a preset "
                             "with random weights; give a weight file")
        torch.manual_seed(args.seed)
        loaded = minivl.create(args.encoder)
    else:
        loaded = minivl.load(args.encoder).float()  # whatever it is stored in
    encoder = tower_of(loaded, args.encoder)
    if start is not None:
        encoder = copy.deepcopy(encoder)
    encoder.site, encoder.preprocessing = "encoder", loaded.preprocessing
    encoder.replace_head(0)
    if encoder.preprocessing is None:
        raise InputError("its preprocessing is unknown: name the file after a preset", source=args.encoder)
    if start is None:
        encoder.preprocessing = replace(encoder.preprocessing, mode=args.fit)
    return encoder


def build_tokenizer(args: argparse.Namespace, texts: Sequence[str], start: Captioner | CLIP | None) -> Tokenizer:
    """That of --init or --tokenizer, or one trained on the captions."""
    if start is not None:
        assert start.tokenizer is not None  # `load_start` saw to it
        tokenizer = start.tokenizer
    elif args.tokenizer:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    else:
        tokenizer = Tokenizer.train(texts, kind=args.pieces, vocab_size=args.vocab_size, min_count=args.min_count)
    if args.objective == "contrastive" and args.drop_words:
        contrasting.unknown_id(tokenizer)  # before features take long
    return tokenizer


def build_captioner(args: argparse.Namespace, encoder: ViT, tokenizer: Tokenizer) -> Captioner:
    """Encoder, tokenizer and a random decoder."""
    torch.manual_seed(args.seed)
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size, width=args.width, depth=args.depth, num_heads=args.heads,
        mlp_dim=4 * args.width, max_len=args.max_len + 1, norm=args.norm, positions=args.positions, tied=args.tied,
        dropout=args.dropout, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    captioner = Captioner(CaptionerConfig(encoder.config, decoder), tokenizer=tokenizer,
                          preprocessing=encoder.preprocessing)
    captioner.encoder.load_state_dict(encoder.state_dict())
    return captioner


def build_pair(args: argparse.Namespace, encoder: ViT, tokenizer: Tokenizer) -> CLIP:
    """Encoder and tokenizer, a random text tower and random projections."""
    torch.manual_seed(args.seed)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=args.width, depth=args.depth, num_heads=args.heads,
        mlp_dim=4 * args.width, embed_dim=args.embed_dim, max_len=args.max_len + 1, act="gelu", dropout=args.dropout,
        bos_id=tokenizer.bos_id, eot_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    vision = replace(encoder.config, num_classes=args.embed_dim, head_bias=False,
                     pool=args.pool or encoder.config.pool)
    pair = CLIP(CLIPConfig(vision, text), tokenizer=tokenizer, preprocessing=encoder.preprocessing)
    visual = pair.visual
    heads = {name: tensor for name, tensor in visual.state_dict().items() if name.startswith("head")}
    visual.load_state_dict({**encoder.state_dict(), **heads})
    return pair


def build_model(args: argparse.Namespace, encoder: ViT, tokenizer: Tokenizer,
                start: Captioner | CLIP | None) -> Captioner | CLIP:
    """The captioner or pair to train: that of --init or a new one, with its parts frozen."""
    build = build_pair if args.objective == "contrastive" else build_captioner
    model = start if start is not None else build(args, encoder, tokenizer)
    if args.freeze_encoder or args.unfreeze:
        freeze_encoder(model, args.unfreeze or 0)
    tower_of(model, "").checkpointing = args.checkpointing
    return model


# -- 3. load -------------------------------------------------------------------------------------------------

class Data(NamedTuple):
    """Pictures (files or pixels) and the captions of each by name, in the same order."""

    pictures: Sequence[Path] | captioning.Pixels
    captions: Mapping[str, Sequence[str]]


def load_photos(args: argparse.Namespace) -> tuple[Data, Data]:
    """Photos to train and to validate on, every one of them being there."""
    sets = (read_captions(args.captions, split=args.split), read_captions(args.val_captions, split=args.val_split))
    for one in sets:
        one.check_images(args.images)
    try:  # before features take long
        if args.objective != "contrastive":
            captioning.check_references(sets[1].captions)
    except InputError as error:
        raise InputError(f"--val-captions {args.val_captions}: {error}") from None
    if args.objective == "contrastive":
        contrasting.check_counts(len(sets[0].images), len(sets[1].images),
                                 source=f"--captions {args.captions}, --val-captions {args.val_captions}")
    train, val = (Data([args.images / name for name in one.images], one.captions) for one in sets)
    return train, val


def draw_scenes(start: int, count: int, preprocessing: Preprocessing, nouns: bool = False) -> Data:
    """Scenes of the model's size, in memory; with `nouns` also captions that name one thing alone."""
    drawn = [(np.asarray(scene.image), scene.captions + (scene.named() if nouns else ())) for scene in
             programs.progress(Scenes(count, start=start, size=preprocessing.size[0]), total=count,
                               desc="drawing scenes")]
    captions = {f"scene {start + number}": texts for number, (_, texts) in enumerate(drawn)}
    return Data(captioning.Pixels(np.stack([pixels for pixels, _ in drawn]), preprocessing), captions)


def load_images(args: argparse.Namespace, data: Data, model: Captioner | CLIP, encoder: ViT,
                mirror: bool) -> captioning.Images:
    """What the model is given: pictures, or their features where the encoder is frozen."""
    images = load_tokens(args, data, model, encoder, mirror)
    if args.freeze_encoder and isinstance(model, CLIP):
        return contrasting.pooled(model.visual, images, progress=programs.progress)
    return images


def load_tokens(args: argparse.Namespace, data: Data, model: Captioner | CLIP, encoder: ViT,
                mirror: bool) -> captioning.Images:
    """Pictures, or all tokens of each where the encoder is frozen."""
    pictures = data.pictures
    if isinstance(pictures, captioning.Pixels):
        return features.encode_images(encoder, pictures, dtype=args.precision,
                                      progress=programs.progress) if args.freeze_encoder else pictures
    if not args.freeze_encoder:
        return captioning.Photos(pictures, model)
    views = [features.compute_features(encoder, pictures, args.features, flip=flip, dtype=args.precision,
                                       progress=programs.progress) for flip in ((False, True) if mirror else (False,))]
    return captioning.Views(views) if mirror else views[0]


def told_notes(args: argparse.Namespace) -> dict[str, Any]:
    """What the weights say of where they come from."""
    start = {"init": args.init} if args.init else {"encoder": args.encoder}
    return {"data": str(args.captions or "scenes"), **start}


def caption_task(args: argparse.Namespace, model: Captioner, images: captioning.Images, data: Data,
                 val_images: captioning.Images, val_data: Data, group: Processes) -> captioning.CaptionTask:
    """Batches, loss and scores of captions; of scst the scores alone."""
    read = {} if args.objective == "scst" else {
        "batch_size": args.batch_size, "refs": args.refs, "smoothing": args.smoothing, "drop_tokens": args.drop_tokens,
        "drop_words": args.drop_words, "sampling": args.scheduled_sampling, "read": args.read, "bucket": args.bucket,
        "epochs": args.epochs, "accumulate": args.accumulate}
    return captioning.CaptionTask(
        model, images, list(data.captions.values()), val_images, val_data.captions,
        remember=captioning.from_features if args.freeze_encoder else Captioner.encode, seed=args.seed,
        views=2 if args.mirror else 1, beams=args.beams, max_len=args.max_len, processes=group,
        workers=args.workers if isinstance(images, captioning.Photos) else 0,
        notes=told_notes(args), progress=programs.progress, **read)


def scst_task(args: argparse.Namespace, model: Captioner, images: captioning.Images, data: Data,
              scored: captioning.CaptionTask, group: Processes, device: torch.device) -> SelfCriticalTask:
    """Samples and their rewards."""
    clip = load_clip(args.reward_weights, device) if args.reward_weights else None
    looks = None
    if clip is not None:
        photos = data.pictures.photos() if isinstance(data.pictures, captioning.Pixels) else data.pictures
        looks = image_features(clip, photos, precision=args.precision, workers=args.workers, progress=programs.progress)
    rewards = Rewards(list(data.captions.values()), {"cider": args.reward_cider, "clip": args.reward_clip}, clip=clip,
                      images=looks, precision=args.precision)
    return SelfCriticalTask(
        scored, model, images, rewards, remember=captioning.from_features if args.freeze_encoder else Captioner.encode,
        batch_size=args.batch_size, samples=args.samples, baseline=args.baseline, temperature=args.temperature,
        max_len=args.max_len, dropout=args.scst_dropout, accumulate=args.accumulate, precision=args.precision,
        seed=args.seed, views=2 if args.mirror else 1,
        workers=args.workers if isinstance(images, captioning.Photos) else 0, processes=group)


def contrast_task(args: argparse.Namespace, model: CLIP, images: captioning.Images, data: Data,
                  val_images: captioning.Images, val_data: Data, group: Processes) -> contrasting.ContrastTask:
    """Batches, loss and scores of an image-text pair."""
    told = told_notes(args)
    return contrasting.ContrastTask(
        model, images, list(data.captions.values()), val_images, list(val_data.captions.values()),
        batch_size=args.batch_size, refs=args.refs, max_len=args.max_len, seed=args.seed, views=2 if args.mirror else 1,
        drop_words=args.drop_words, workers=args.workers if isinstance(images, captioning.Photos) else 0,
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
        group.first_then_all(lambda: run.check(args.resume), lambda: None)
        train(args, plan, run, group, device)


def train(args: argparse.Namespace, plan: Plan, run: Run, group: Processes, device: torch.device) -> None:
    """From data to the best weights."""
    start = load_start(args) if args.init else None
    encoder = build_encoder(args, start).to(device)
    if args.images:
        data, val_data = load_photos(args)
    else:
        assert encoder.preprocessing is not None
        data = draw_scenes(0, args.scenes, encoder.preprocessing, nouns=bool(args.nouns))
        val_data = draw_scenes(VAL_START, args.val_scenes, encoder.preprocessing)
    tokenizer = build_tokenizer(args, [text for texts in data.captions.values() for text in texts], start)
    model = build_model(args, encoder, tokenizer, start).to(device)
    images = load_images(args, data, model, encoder, args.mirror)
    val_images = load_images(args, val_data, model, encoder, False)
    task: captioning.CaptionTask | contrasting.ContrastTask | SelfCriticalTask
    if isinstance(model, CLIP):
        task = contrast_task(args, model, images, data, val_images, val_data, group)
    else:
        task = scored = caption_task(args, model, images, data, val_images, val_data, group)
        if args.objective == "scst":
            task = scst_task(args, model, images, data, scored, group, device)

    told = [data.captions, val_data.captions, tokenizer.to_json()]
    if group.first:
        report_start(args, model, len(data.captions), task.cut)
    for row in fit(model, task, plan, out=args.out, settings=arguments.settings_of(args, told, ["features"]),
                   resume=args.resume, processes=group, wrap=task.wrap, compiled=args.compile,
                   progress=programs.progress if group.first else None):
        if group.first:
            programs.report(args, row, f"epoch {row['epoch']:>3}  loss {row['train_loss']:.3f}  validation loss "
                            f"{row['val_loss']:.3f}  {scores_text(row)}  {row['seconds']:.0f} s")
            plot_history(args.out, read_history(args.out))
    if group.first:
        finish(args, run, len(val_data.captions))


def report_start(args: argparse.Namespace, model: Captioner | CLIP, pictures: int, cut: int) -> None:
    """Say what is about to be trained."""
    assert model.tokenizer is not None
    words = model.tokenizer.vocab_size
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    programs.report(args, {"images": pictures, "vocabulary": words, "trained_parameters": trained, "cut_captions": cut},
                    f"{pictures} training pictures, vocabulary {words}, {trained / 1e6:.2f} M trained parameters, "
                    f"{cut} captions cut at {args.max_len} tokens")


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
