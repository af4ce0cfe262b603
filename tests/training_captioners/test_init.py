"""train_p2.py --init and --encoder: from a trained model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from small_runs import PAIR, SCENES, STAYS, begun, mistake, options, train, weights

import minivl
from minivl.data.captions import read_captions
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP
from minivl.models.grid import GridConfig

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
@pytest.mark.parametrize("freeze", [None, True])
def test_init_is_the_file(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str,
                          freeze: bool | None) -> None:
    train(data, tmp_path / "one", **begun(starts, objective, freeze_encoder=freeze, dropout=0.125, **STAYS))
    found, wanted = (minivl.load(path) for path in (tmp_path / "one" / "best.safetensors", starts[objective]))
    assert isinstance(found, (Captioner, CLIP)) and isinstance(wanted, (Captioner, CLIP))
    assert wanted.state_dict().keys() == found.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert found.tokenizer is not None and wanted.tokenizer is not None
    assert found.tokenizer.to_json() == wanted.tokenizer.to_json() and found.preprocessing == wanted.preprocessing
    part = "decoder" if objective == "caption" else "text"
    theirs = getattr(wanted.config, part)
    assert theirs.dropout == 0.25
    assert found.config == replace(wanted.config, **{part: replace(theirs, dropout=0.125)})
    assert found.notes["init"] == str(starts[objective]) and found.notes.get("kept") == wanted.notes.get("kept")
    assert "look" not in found.notes and found.notes["scores"].get("cider_d") != 9.0
    assert (tmp_path / "features").exists() == bool(freeze)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["max_len"] == 8 and config["width"] is None  # its room


def test_scores_of_a_frozen_start_are_those_of_the_file(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    from minivl.train.captioning import score
    train(data, tmp_path / "one", **begun(starts, "caption", freeze_encoder=True, **STAYS))
    told, model = read_captions(data / "val.json"), minivl.load(starts["caption"])
    assert isinstance(model, Captioner)
    said = model.caption([data / "photos" / name for name in told.images], beams=2, max_len=8)
    assert score(said, told.captions).score == pytest.approx(weights(tmp_path / "one").notes["scores"]["cider_d"])


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
@pytest.mark.parametrize("freeze", [None, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_pictures_of_another_size(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str,
                                  freeze: bool | None, fresh: bool) -> None:
    told = {**(PAIR if objective == "contrastive" else {}), "freeze_encoder": freeze} if fresh else \
        begun(starts, objective, freeze_encoder=freeze)
    train(data, tmp_path / "one", **{**told, "image_size": 40, **STAYS})
    found, wanted = (minivl.load(path) for path in (tmp_path / "one" / "best.safetensors",
                                                    data / "vit.safetensors" if fresh else starts[objective]))
    assert isinstance(found, (Captioner, CLIP)) and found.preprocessing is not None
    tower = found.visual if isinstance(found, CLIP) else found.encoder
    before = wanted.visual if isinstance(wanted, CLIP) else wanted.encoder if isinstance(wanted, Captioner) else wanted
    assert tower.config.image_size == found.preprocessing.size == (40, 40) != before.config.image_size
    before.resize(40)
    same = [name for name, tensor in before.state_dict().items() if not name.startswith("head.")
            and torch.equal(tensor, tower.state_dict()[name])]
    assert "pos_embed" in same and len(same) > 20


def test_scenes_of_another_size(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one", **{**SCENES, "encoder": "scenes_patch8_96", "epochs": 1, "lr": 0, "weight_decay": 0,
                                     "image_size": 48})
    encoder = weights(tmp_path / "one").encoder
    assert encoder.config.image_size == (48, 48)
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)  # drawn at this size, not made smaller


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
def test_only_the_last_block_moves(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str) -> None:
    train(data, tmp_path / "one", **begun(starts, objective, unfreeze=1, epochs=1, ema=0, lr=0.01, encoder_lr=0.001))
    found, wanted = (minivl.load(path).state_dict() for path in (tmp_path / "one" / "last.safetensors",
                                                                 starts[objective]))
    prefix = "encoder." if objective == "caption" else "visual."
    for name, tensor in wanted.items():
        moves = not name.startswith(prefix) or name.startswith(tuple(
            f"{prefix}{part}" for part in ("blocks.2.", "norm.", "head.")))
        if "k_proj.bias" not in name and name != "visual.blocks.2.attn.q_proj.bias":  # a bias of keys has no gradient
            assert torch.equal(tensor, found[name]) != moves, name
    moved = {part: max((found[name] - tensor).abs().max() for name, tensor in wanted.items() if name.startswith(part))
             for part in (f"{prefix}blocks.2.mlp", "proj." if objective == "caption" else "text.blocks.0.mlp")}
    first, second = moved.values()
    assert 0 < first < 0.3 * second  # AdamW moves by the rate, whatever the gradient


@pytest.mark.parametrize("changes, told", [
    ({name: value}, f"--{name.replace('_', '-').removeprefix('no-')} does not go with --init, whose file says it")
    for name, value in (("encoder", "x"), ("tokenizer", "x"), ("pieces", "bpe"), ("vocab_size", 30), ("min_count", 2),
                        ("width", 8), ("depth", 2), ("heads", 2), ("norm", "pre"), ("positions", "learned"),
                        ("tied", True), ("no_tied", True), ("fit", "crop"))] + [
    ({"unfreeze": 1, "freeze_encoder": True}, "--unfreeze is for an encoder that is trained"),
    ({"encoder_lr": 1e-4, "freeze_encoder": True}, "--encoder-lr is for an encoder that is trained"),
    ({"layer_decay": 0.5, "freeze_encoder": True}, "--layer-decay is for an encoder that is trained"),
    ({"checkpointing": True, "freeze_encoder": True}, "--checkpointing is for an encoder that is trained"),
    ({"image_size": 30}, "caption.safetensors: image_size (30, 30) is not a whole number of patches (8, 8): 24 or 32 "
     "would be"), ({"image_size": 5}, "(8, 8): 8 would be"),
    ({"image_size": 0}, "--image-size 0: give 1 or more"), ({"image_size": 4097}, "at most 4096 pixels a side"),
    ({"accumulate": 0}, "--accumulate 0: give 1"), ({"sam_adaptive": True}, "sam_adaptive"),
    ({"shard": True}, "--shard: there is one process"), ({"time_limit": -1}, "time_limit=-1"),
    ({"unfreeze": 0}, "--unfreeze 0: give 1 or more"), ({"unfreeze": 4}, "unfreeze=4: the encoder has 3 blocks"),
    ({"encoder_lr": -1}, "encoder_lr=-1.0"), ({"layer_decay": 2}, "layer_decay=2"),
    ({"max_len": 9}, "--max-len 9: it has room for 8 tokens, give at most that"),
    ({"init": "none.safetensors"}, "none.safetensors")])
def test_what_does_not_go_with_init(data: Path, starts: dict[str, Path], tmp_path: Path, changes: dict[str, Any],
                                    told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **begun(starts, "caption", **changes)), capsys)
    assert list(tmp_path.iterdir()) == []


def test_what_no_start_is(data: Path, starts: dict[str, Path], tmp_path: Path,
                          capsys: pytest.CaptureFixture[str]) -> None:
    def line(objective: str = "caption", **changes: Any) -> str:
        return mistake(options(data, tmp_path / "one", **begun(starts, objective, **changes)), capsys)

    for objective, other in (("caption", "contrastive"), ("contrastive", "caption")):
        assert f"{starts[other]}: is no " in line(objective, init=starts[other])
    assert "an encoder alone is for --encoder" in line(init=data / "vit.safetensors")
    assert "preset without published weights" in line(init="scenes_patch8_96")
    for name, value in (("pool", "mean"), ("embed_dim", 7)):
        assert f"--{name.replace('_', '-')} does not go with --init" in line("contrastive", **{name: value})
    minivl.save(Captioner(CaptionerConfig(GridConfig(8, 1, 2, 8, layers=(1, 1, 1, 1)), replace(
        tiny_run.captioner().config.decoder, memory_width=16)), tokenizer=tiny_run.captioner().tokenizer,
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)), tmp_path / "grid.safetensors")
    assert f"{tmp_path / 'grid.safetensors'}: is a captioner over a grid" in line(init=tmp_path / "grid.safetensors")
    start = minivl.load(starts["caption"])
    assert isinstance(start, Captioner)
    start.tokenizer = None
    minivl.save(start, tmp_path / "wordless.safetensors")
    assert "has no tokenizer" in line(init=tmp_path / "wordless.safetensors")
    refusal = mistake(options(data, tmp_path / "one", encoder="scenes_patch8_96", freeze_encoder=None, unfreeze=1),
                      capsys)
    assert "--unfreeze: scenes_patch8_96 is a preset with random weights" in refusal
    assert not (tmp_path / "one").exists()
