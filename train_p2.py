"""Train a captioner: on photographs with their captions, or (without --images) on the built-in scenes."""

from __future__ import annotations

import argparse
import hashlib
import json
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
from minivl.models.clip import CLIP
from minivl.models.decoder import DecoderConfig
from minivl.models.presets import PRESETS
from minivl.models.vit import ViT
from minivl.plotting.history import plot_history
from minivl.text.tokenizer import Tokenizer
from minivl.train import captioning, features
from minivl.train.looks import choose_look
from minivl.train.loop import Plan, fit
from minivl.train.run import Run, read_history

HERE = Path(__file__).resolve().parent
LOOK_SCENES = 300  # training scenes on which layer and heads to look at are fixed
VAL_START = 10_000_000  # validation scenes are numbered from here, so that no training scene is among them


# -- 1. parse ------------------------------------------------------------------------------------------------

def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--images", type=Path, help="folder of photos; without it: the built-in scenes")
    data.add_argument("--captions", type=Path, help="COCO-JSON, Karpathy JSON or Flickr token file")
    data.add_argument("--val-captions", type=Path, help="the same for validation")
    data.add_argument("--split", help="split of --captions, for a Karpathy JSON")
    data.add_argument("--val-split", help="split of --val-captions")
    data.add_argument("--scenes", type=int, default=6000, help="training scenes, without --images")
    data.add_argument("--val-scenes", type=int, default=500, help="validation scenes, without --images")
    model = parser.add_argument_group("model")
    model.add_argument("--encoder", default="scenes_patch8_96", help="weights of a ViT, or a preset to start at random")
    model.add_argument("--freeze-encoder", action="store_true", help="keep the encoder; its features are computed once")
    model.add_argument("--fit", choices=("squash", "crop"), default="squash",
                       help="squash shows the whole picture, crop keeps its aspect")
    model.add_argument("--width", type=int, default=256, help="of the decoder")
    model.add_argument("--depth", type=int, default=4, help="layers of the decoder")
    model.add_argument("--heads", type=int, default=8, help="of the decoder")
    model.add_argument("--norm", choices=("pre", "post"), default="pre", help="layer norm before or after each branch")
    model.add_argument("--positions", choices=("learned", "sinusoidal"), default="learned",
                       help="position table of the text")
    model.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True, help="head = word table")
    model.add_argument("--dropout", type=float, default=0.3, help="of the decoder")
    words = parser.add_argument_group("words")
    words.add_argument("--tokenizer", type=Path, help="a tokenizer.json; without it one is trained on the captions")
    words.add_argument("--pieces", choices=("word", "bpe"), default="word", help="what is trained")
    words.add_argument("--vocab-size", type=int, help="largest vocabulary")
    words.add_argument("--min-count", type=int, default=5, help="rarer words are unknown")
    words.add_argument("--max-len", type=int, default=30, help="longest caption, end token counted")
    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=int, default=10, help="passes over the pictures; end of the schedule")
    train.add_argument("--batch-size", type=int, default=160, help="captions in a batch")
    train.add_argument("--refs", type=int, default=5, help="captions of a picture in a batch; they share its memory")
    train.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    train.add_argument("--weight-decay", type=float, default=0.05, help="on matrices only")
    train.add_argument("--warmup", type=int, default=200, help="steps of rising learning rate")
    train.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; 0 = none")
    train.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    train.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights; 0 = none")
    train.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None,
                       help="with --freeze-encoder: also features of the mirrored photos (on unless --no-mirror)")
    train.add_argument("--drop-tokens", type=float, default=0.2, help="share of visual tokens hidden in training")
    train.add_argument("--drop-words", type=float, default=0.1, help="share of read words made unknown in training")
    train.add_argument("--beams", type=int, default=3, help="of validation captions")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder of the run")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--features", type=Path, default=weight_folders()[-1].parent / "features",
                     help="cache of frozen features")
    parser.add_common(precision="auto")
    programs.recipe_defaults(parser, argv, HERE / "recipes", "train_p2")
    args = parser.parse_args(argv)
    programs.check_common(args)
    real = (args.images, args.captions, args.val_captions)
    if any(real) and not all(real):
        raise InputError("--images, --captions and --val-captions go together")
    frozen_photos = bool(args.images and args.freeze_encoder)
    if args.mirror and not frozen_photos:
        raise InputError("--mirror is for --images with --freeze-encoder: it doubles the stored features")
    args.mirror = frozen_photos if args.mirror is None else args.mirror
    for name, least in (("scenes", 1), ("val_scenes", 2), ("refs", 1), ("beams", 1), ("max_len", 1), ("min_count", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give {least} or more")
    if args.batch_size < args.refs:
        raise InputError(f"--batch-size {args.batch_size} must hold at least the --refs {args.refs} of one picture")
    for name in ("dropout", "smoothing", "drop_tokens", "drop_words"):
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 0 or more, less than 1")
    return args


# -- 2. build ------------------------------------------------------------------------------------------------

def build_encoder(args: argparse.Namespace) -> ViT:
    """The ViT of --encoder, without a head."""
    if args.encoder in PRESETS and "/" not in args.encoder:  # with an owner it is a hub id, with its weights
        if args.freeze_encoder:
            raise InputError(f"--freeze-encoder: {args.encoder} is a preset with random weights; give a weight file")
        torch.manual_seed(args.seed)
        loaded = minivl.create(args.encoder)
    else:
        loaded = minivl.load(args.encoder).float()  # whatever it is stored in
    encoder = loaded.visual if isinstance(loaded, CLIP) else loaded
    if not isinstance(encoder, ViT):
        raise InputError("is a captioner: --encoder takes a ViT or a CLIP, of which it uses the image tower",
                         source=args.encoder)
    encoder.site = "encoder"
    encoder.replace_head(0)
    if encoder.preprocessing is None:
        raise InputError("its preprocessing is unknown: name the file after a preset", source=args.encoder)
    encoder.preprocessing = replace(encoder.preprocessing, mode=args.fit)
    return encoder


def build_captioner(args: argparse.Namespace, encoder: ViT, texts: Sequence[str]) -> Captioner:
    """Encoder, tokenizer and a random decoder."""
    if args.tokenizer:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    else:
        tokenizer = Tokenizer.train(texts, kind=args.pieces, vocab_size=args.vocab_size, min_count=args.min_count)
    torch.manual_seed(args.seed)
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size, width=args.width, depth=args.depth, num_heads=args.heads,
        mlp_dim=4 * args.width, max_len=args.max_len + 1, norm=args.norm, positions=args.positions, tied=args.tied,
        dropout=args.dropout, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    captioner = Captioner(CaptionerConfig(encoder.config, decoder), tokenizer=tokenizer,
                          preprocessing=encoder.preprocessing)
    captioner.encoder.load_state_dict(encoder.state_dict())
    if args.freeze_encoder:
        captioner.encoder.requires_grad_(False)
    return captioner


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
        captioning.check_references(sets[1].captions)
    except InputError as error:
        raise InputError(f"--val-captions {args.val_captions}: {error}") from None
    train, val = (Data([args.images / name for name in one.images], one.captions) for one in sets)
    return train, val


def draw_scenes(start: int, count: int, preprocessing: Preprocessing) -> Data:
    """Scenes of the model's size, in memory."""
    drawn = [(np.asarray(scene.image), scene.captions) for scene in programs.progress(
        Scenes(count, start=start, size=preprocessing.size[0]), total=count, desc="drawing scenes")]
    captions = {f"scene {start + number}": texts for number, (_, texts) in enumerate(drawn)}
    return Data(captioning.Pixels(np.stack([pixels for pixels, _ in drawn]), preprocessing), captions)


def load_images(args: argparse.Namespace, data: Data, captioner: Captioner, encoder: ViT,
                mirror: bool) -> captioning.Images:
    """What the captioner is given: pictures, or their features where the encoder is frozen."""
    pictures = data.pictures
    if isinstance(pictures, captioning.Pixels):
        return features.encode_images(encoder, pictures, dtype=args.precision,
                                      progress=programs.progress) if args.freeze_encoder else pictures
    if not args.freeze_encoder:
        return captioning.Photos(pictures, captioner)
    views = [features.compute_features(encoder, pictures, args.features, flip=flip, dtype=args.precision,
                                       progress=programs.progress) for flip in ((False, True) if mirror else (False,))]
    return captioning.Views(views) if mirror else views[0]


def settings_of(args: argparse.Namespace, *told: object) -> dict[str, Any]:
    """What a resumed run must repeat: the options, and by its hash what is `told` (captions, tokenizer)."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
                if key not in ("out", "resume", "json", "workers", "features", "device")}
    return {**settings, "data_hash": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}


# -- 4. to 6. loop, evaluate, save ---------------------------------------------------------------------------

def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    device = programs.device_of(args.device)
    args.precision = programs.precision_of(args.precision, device)
    plan = Plan(args.epochs, args.lr, args.weight_decay, args.warmup, args.clip, args.precision, args.ema, args.seed)
    run = Run(args.out)
    run.check(args.resume)

    encoder = build_encoder(args).to(device)
    if args.images:
        data, val_data = load_photos(args)
    else:
        assert encoder.preprocessing is not None
        data = draw_scenes(0, args.scenes, encoder.preprocessing)
        val_data = draw_scenes(VAL_START, args.val_scenes, encoder.preprocessing)
    captioner = build_captioner(args, encoder, [text for texts in data.captions.values() for text in texts]).to(device)
    images = load_images(args, data, captioner, encoder, args.mirror)
    val_images = load_images(args, val_data, captioner, encoder, False)

    assert captioner.tokenizer is not None
    settings = settings_of(args, data.captions, val_data.captions, captioner.tokenizer.to_json())
    task = captioning.CaptionTask(
        captioner, images, list(data.captions.values()), val_images, val_data.captions,
        remember=captioning.from_features if args.freeze_encoder else Captioner.encode, batch_size=args.batch_size,
        refs=args.refs, smoothing=args.smoothing, seed=args.seed, views=2 if args.mirror else 1,
        drop_tokens=args.drop_tokens, drop_words=args.drop_words, beams=args.beams, max_len=args.max_len,
        workers=args.workers if isinstance(images, captioning.Photos) else 0,
        notes={"data": str(args.captions or "scenes")}, progress=programs.progress)
    report_start(args, captioner, len(data.captions), task.cut)
    for row in fit(captioner, task, plan, out=args.out, settings=settings, resume=args.resume,
                   progress=programs.progress):
        programs.report(args, row, f"epoch {row['epoch']:>3}  loss {row['train_loss']:.3f}  validation loss "
                        f"{row['val_loss']:.3f}  CIDEr-D {row['cider_d']:.3f}  {row['seconds']:.0f} s")
        plot_history(args.out, read_history(args.out))
    finish(args, run, len(val_data.captions))


def report_start(args: argparse.Namespace, captioner: Captioner, pictures: int, cut: int) -> None:
    """Say what is about to be trained."""
    words = captioner.config.decoder.vocab_size
    trained = sum(parameter.numel() for parameter in captioner.parameters() if parameter.requires_grad)
    programs.report(args, {"images": pictures, "vocabulary": words, "trained_parameters": trained, "cut_captions": cut},
                    f"{pictures} training pictures, vocabulary {words}, {trained / 1e6:.2f} M trained parameters, "
                    f"{cut} captions cut at {args.max_len} tokens")


def finish(args: argparse.Namespace, run: Run, val_pictures: int) -> None:
    """Say what came out; for scenes, fix layer and heads to look at on training scenes."""
    plot_history(args.out, read_history(args.out))
    best = args.out / "best.safetensors"
    captioner = minivl.load(best)
    assert isinstance(captioner, Captioner)
    if not args.images:
        if "look" not in captioner.notes:
            assert captioner.preprocessing is not None  # it was trained by it
            scenes = list(Scenes(min(LOOK_SCENES, args.scenes), size=captioner.preprocessing.size[0]))
            if look := choose_look(captioner, scenes, args.beams, progress=programs.progress):
                captioner.notes["look"] = look
                minivl.save(captioner, best)
            else:
                programs.report(args, {"look": None}, "the captions name nothing yet: no layer and heads to look at")
        run.note("look", captioner.notes.get("look"))
    scores = captioner.notes["scores"]
    programs.report(args, {"best": str(best), **scores}, f"best: CIDEr-D {scores['cider_d']:.3f} with {args.beams} "
                    f"beams on {val_pictures} validation pictures ({scores['signature']}): {best}")


if __name__ == "__main__":
    programs.program(main)
