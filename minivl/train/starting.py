"""What `train_p2.py` begins with: the model of --init, or an encoder and a new decoder or text tower, and a tokenizer.

All of it is made from the program's options.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError, counted, some
from ..loading import create, load, not_finite, resize
from ..models.captioner import Captioner, CaptionerConfig
from ..models.clip import CLIP, CLIPConfig, TextConfig
from ..models.decoder import DecoderConfig
from ..models.presets import PRESETS
from ..models.vit import ViT
from ..text.tokenizer import Tokenizer
from .contrasting import unknown_id
from .objectives import NEW
from .optim import freeze_encoder


def load_start(args: argparse.Namespace) -> Captioner | CLIP:
    """The model of --init, with the dropout and image size of the command line; --max-len is settled by its room."""
    loaded = load(args.init, image_size=args.image_size).float()
    kind: type[Captioner] | type[CLIP] = CLIP if args.objective == "contrastive" else Captioner
    check_finite(loaded, args.init)
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
        raise InputError(f"--max-len {args.max_len}: it has room for {room} tokens, give at most that",
                         source=args.init)
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


def check_finite(model: nn.Module, source: str) -> None:
    """Raise InputError, naming the file, for weights that no training could start from: nan or infinite ones."""
    if strange := not_finite(model):
        raise InputError(f"{counted(len(strange), 'tensor')} with nan or infinite values, from which nothing can be "
                         f"trained: {some(strange, 4)}; give other weights", source=source)


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
        loaded = create(args.encoder)
        if args.image_size is not None:
            resize(loaded, args.image_size, args.encoder)
            tower_of(loaded, args.encoder).reset_parameters()  # a random table is drawn, not resized
    else:
        loaded = load(args.encoder, image_size=args.image_size).float()  # whatever it is stored in
        check_finite(loaded, args.encoder)
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


def build_tokenizer(args: argparse.Namespace, texts: Iterable[str], start: Captioner | CLIP | None) -> Tokenizer:
    """That of --init or --tokenizer, or one trained on the captions."""
    if start is not None:
        assert start.tokenizer is not None  # `load_start` saw to it
        tokenizer = start.tokenizer
    elif args.tokenizer:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    else:
        tokenizer = Tokenizer.train(texts, kind=args.pieces, vocab_size=args.vocab_size, min_count=args.min_count)
    if args.objective == "contrastive" and args.drop_words:
        unknown_id(tokenizer)  # before features take long
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
    tower = tower_of(model, "")
    tower.checkpointing = args.checkpointing
    if isinstance(model, Captioner) and tower.fc_norm is not None:
        tower.fc_norm.requires_grad_(False)  # a captioner sees all tokens: no gradient comes from behind their mean
    return model
