"""CLIPs of transformers, open_clip and OpenAI: tiny random ones, what they answer, and ours held against them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import convert_weights_to_fp16
from random_models import randomise
from references import random_reference
from torch import Tensor, nn

import minivl
from minivl.convert import clip
from minivl.models.clip import CLIP, CLIPConfig

SCALE = 0.15  # of the parameters: features are of order one
ENDS = (5, 12, 1, 7, 5)  # of the texts below
VISION = {"layers": 3, "width": 48, "head_width": 12, "mlp_ratio": 2, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 13, "vocab_size": 99, "width": 40, "heads": 5, "layers": 2, "mlp_ratio": 1.5}
HF_VISION = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8}
HF_TEXT = {"vocab_size": 99, "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2,
           "num_attention_heads": 5, "max_position_embeddings": 13, "bos_token_id": 97, "eos_token_id": 98}


def pictures(count: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Noise over large spots: noise alone is the same to a class token."""
    generator = torch.Generator().manual_seed(1)
    spots = torch.randn(count, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(spots, size=size) + torch.randn(count, 3, *size, generator=generator) / 2


def texts(vocabulary: int = 99, length: int = 13) -> Tensor:
    """Five texts: one fills every position, one is empty, in one the end token comes again later."""
    ids = torch.randint(1, vocabulary - 2, (len(ENDS), length), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = vocabulary - 2
    for row, end in zip(ids, ENDS):
        row[end], row[end + 1:] = vocabulary - 1, 0
    ids[3, 9] = vocabulary - 1
    return ids


def of_transformers(seed: int = 0, **changes: Any) -> transformers.CLIPModel:
    """Tiny and random; changes are of the towers ("vision", "text") or of the whole."""
    vision, text = ({**given, **changes.pop(tower, {})} for tower, given in (("vision", HF_VISION), ("text", HF_TEXT)))
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24, **changes)
    return random_reference(transformers.CLIPModel, config, seed, SCALE)


def model_cfg(quick_gelu: bool = True, **vision: Any) -> dict[str, Any]:
    return {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": {**VISION, **vision}, "text_cfg": dict(TEXT)}


def of_open_clip(kind: Any = OpenCLIP, seed: int = 0, **changes: Any) -> nn.Module:
    return randomise(kind(**model_cfg(**changes)), seed, SCALE)


def base_sized(model: nn.Module) -> nn.Module:
    """Every parameter random, so that activations stay of order one at any width; eval mode."""
    generator = torch.Generator().manual_seed(0)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
            parameter.mul_(0.2 if parameter.ndim < 2 else 0.7 * parameter[0].numel() ** -0.5)
            parameter.add_(id(parameter) in norms)
        model.get_parameter("logit_scale").fill_(3.0)  # cosines of random features are small
    return model.eval()


def openai_shaped(**changes: Any) -> nn.Module:
    """Tiny, in open_clip's code, with heads 64 wide as all of OpenAI's."""
    return randomise(OpenCLIP(24, {**VISION, "width": 192, "head_width": 64, **changes},
                              {**TEXT, "width": 128, "heads": 2, **changes}, True), 0, 0.08)


def of_openai() -> tuple[dict[str, Tensor], nn.Module]:
    """A state dict as OpenAI publishes them (matrices in half precision, three numbers beside them), and the model."""
    theirs, halved = openai_shaped(), openai_shaped()
    convert_weights_to_fp16(halved)
    state = dict(halved.state_dict())
    theirs.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.float32}
    return {**state, **numbers(32, 13, 99)}, theirs


def numbers(side: int, length: int, words: int) -> dict[str, Tensor]:
    """What lies beside the weights in OpenAI's files."""
    return dict(zip(clip.ENTRIES, map(torch.tensor, (side, length, words))))


def as_transformers(config: CLIPConfig) -> transformers.CLIPConfig:
    """Our config in transformers' words."""
    parts = [{"hidden_size": part.width, "num_hidden_layers": part.depth, "num_attention_heads": part.num_heads,
              "intermediate_size": part.mlp_dim, "hidden_act": part.act} for part in (config.vision, config.text)]
    return transformers.CLIPConfig(
        vision_config={**parts[0], "image_size": config.vision.image_size[0],
                       "patch_size": config.vision.patch_size[0]},
        text_config=parts[1], projection_dim=config.text.embed_dim)


@contextlib.contextmanager
def weights_of(theirs: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What the attention layers of both towers of an open_clip model attend to in the calls inside, by site."""
    found: dict[str, list[Tensor]] = {"image": [], "text": []}
    towers = {"image": theirs.visual, "text": getattr(theirs, "text", theirs)}
    with contextlib.ExitStack() as hooks:
        for site, tower in towers.items():
            for block in tower.transformer.resblocks:
                def openly(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                    return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

                def keep(module: nn.Module, args: Any, output: Any, site: str = site) -> None:
                    found[site].append(output[1])

                hooks.callback(block.attn.register_forward_pre_hook(openly, with_kwargs=True).remove)
                hooks.callback(block.attn.register_forward_hook(keep).remove)
        yield found


@torch.no_grad()
def answers(theirs: nn.Module, images: Tensor, ids: Tensor, **options: Any) -> dict[str, Any]:
    """Features, logits and attention by either library."""
    if isinstance(theirs, transformers.CLIPModel):
        whole = theirs(input_ids=ids, pixel_values=images, output_attentions=True, **options)
        return {"image": theirs.get_image_features(images, **options).pooler_output,
                "text": theirs.get_text_features(ids).pooler_output, "logits": whole.logits_per_image,
                "weights": {"image": whole.vision_model_output.attentions, "text": whole.text_model_output.attentions}}
    with weights_of(theirs) as weights:
        image, text = theirs.encode_image(images), theirs.encode_text(ids)
    return {"image": image, "text": text, "logits": theirs.get_logits(images, ids)[0], "weights": weights}


@torch.no_grad()
def compare(ours: minivl.loading.Model, theirs: nn.Module, images: Tensor, ids: Tensor, **options: Any
            ) -> tuple[float, float]:
    """Largest differences of logits and of attention."""
    assert isinstance(ours, CLIP) and not ours.training
    expected, record = answers(theirs, images, ids, **options), minivl.AttnRecord()
    logits = ours(images, ids, attn=record)
    found = {"image": ours.encode_image(images), "text": ours.encode_text(ids), "logits": logits}
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], atol=1e-5, rtol=0)
    assert 0.3 < found["image"].std() < 5 and 0.3 < found["text"].std() < 5  # of order one, and not normalised
    assert logits.std() > 0.02 and (logits[0] - logits[1]).abs().max() > 0.01
    differences = []
    for site, (depth, _) in ours.attn_sites.items():
        assert len(expected["weights"][site]) == depth
        for layer, weights in enumerate(expected["weights"][site]):
            assert weights.std() > 0.1 / weights.shape[-1]  # heads look somewhere
            differences.append(float((record[site, layer] - weights).abs().max()))
    assert max(differences) <= 1e-6
    return float((logits - expected["logits"]).abs().max()), max(differences)
