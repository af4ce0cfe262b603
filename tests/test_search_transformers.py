"""Every option that transformers has too, token by token against its `generate` on the same random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captioner_references import pixels, trimmed
from references import description, states
from search_tables import EOS, Table, search
from test_blip import leaning as blip
from test_vit_gpt2 import leaning as vit_gpt2
from torch import Tensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.logits_process import LogitNormalization, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

import minivl

MODELS = {"ViT-GPT2": vit_gpt2, "BLIP": blip}
SUM, MEAN = {"length_penalty": 0.0}, {"length_penalty": 1.0, "early_stopping": "never"}
HF = {"length_penalty": 1.0, "early_stopping": False}  # what generate does where nobody says otherwise
BAD = [(9,), (13,), (17,), (21,), *((token, token) for token in range(8, 23))]
# our options, those of transformers' generate that mean the same, number of random models
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "stop hf, 3 beams": ({"beams": 3, "normalise": "mean", "stop": "hf"}, {"num_beams": 3, **HF}, 20),
    "stop hf, 5 beams": ({"beams": 5, "normalise": "mean", "stop": "hf"}, {"num_beams": 5, **HF}, 20),
    "stop hf, sums": ({"beams": 4, "stop": "hf"}, {"num_beams": 4, "early_stopping": False, **SUM}, 6),
    "min length": ({"beams": 3, "min_len": 5}, {"num_beams": 3, "min_new_tokens": 4, **SUM}, 6),
    "min length, greedy": ({"beams": 1, "min_len": 5}, {"min_new_tokens": 4}, 6),
    "bigrams": ({"beams": 3, "no_repeat_ngram": 2}, {"num_beams": 3, "no_repeat_ngram_size": 2, **SUM}, 6),
    "trigrams, greedy": ({"beams": 1, "no_repeat_ngram": 3}, {"no_repeat_ngram_size": 3}, 6),
    "repetition": ({"beams": 3, "repetition_penalty": 1.4, "normalise": "mean"},
                   {"num_beams": 3, "repetition_penalty": 1.4, **MEAN}, 6),
    "repetition, greedy": ({"beams": 1, "repetition_penalty": 1.4}, {"logits_processor": [
        LogitNormalization(), RepetitionPenaltyLogitsProcessor(1.4)]}, 6),  # theirs acts on logits when greedy
    "forbidden": ({"beams": 3, "forbidden": BAD},
                  {"num_beams": 3, "bad_words_ids": [list(ids) for ids in BAD], **SUM}, 6),
    "all at once": ({"beams": 4, "stop": "hf", "normalise": "mean", "min_len": 4, "no_repeat_ngram": 2,
                     "repetition_penalty": 1.2, "forbidden": BAD},
                    {"num_beams": 4, "min_new_tokens": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2,
                     "bad_words_ids": [list(ids) for ids in BAD], **HF}, 6),
}


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[tuple[Any, Any]]]:
    """For each kind of model, 20 random ones of transformers beside ours."""
    made = {}
    for name, leaning in MODELS.items():
        theirs = [leaning(seed) for seed in range(20)]
        made[name] = [(model, minivl.from_state_dict(states(model, "memory"), config=description(model)))
                      for model in theirs]
    return made


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_generate(case: str, model: str, pairs: dict[str, list[tuple[Any, Any]]]) -> None:
    ours, theirs, count = CASES[case]
    changed = 0
    for seed, (reference, captioner) in enumerate(pairs[model][:count]):
        images, length = pixels(4, seed=seed), 14 if case.startswith("stop") else 9
        with torch.no_grad():
            expected = reference.generate(pixel_values=images, max_new_tokens=length, do_sample=False,
                                          return_dict_in_generate=True, output_scores=True, **theirs)
        captions = captioner.caption(images, max_len=length, **ours)
        end = captioner.config.decoder.eos_id
        assert [caption.ids for caption in captions] == [trimmed(row, end) for row in expected.sequences], seed
        if ours["beams"] > 1:
            torch.testing.assert_close(torch.tensor([caption.score for caption in captions]),
                                       expected.sequences_scores, atol=1e-4, rtol=0)
        plain = captioner.caption(images, max_len=length, beams=ours["beams"], normalise=ours.get("normalise", "none"))
        changed += [caption.ids for caption in captions] != [caption.ids for caption in plain]
    assert changed or case.startswith("stop")  # the option does something; where to stop matters further down


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_prefix(beams: int, pairs: dict[str, list[tuple[Any, Any]]]) -> None:
    for seed, (reference, captioner) in enumerate(pairs["ViT-GPT2"][:6]):
        images, begin = pixels(3, seed=seed), (7, 3, 11)
        expected = reference.generate(pixel_values=images, decoder_input_ids=torch.tensor([begin] * 3),
                                      max_new_tokens=8, do_sample=False, num_beams=beams, **(SUM if beams > 1 else {}))
        captions = captioner.caption(images, max_len=8, beams=beams, prefix=begin[1:])
        assert [caption.ids for caption in captions] == [trimmed(row, 7) for row in expected]
        for image, caption in enumerate(captions):
            logp = captioner.replay(images[image:image + 1], [caption.ids]).log_softmax(-1)[0]
            each = [float(logp[t, token]) for t, token in enumerate(caption.ids[1:])]
            assert caption.logps == pytest.approx([0.0, 0.0, *each[2:]], abs=1e-5)


class TableModel(PreTrainedModel, GenerationMixin):
    """A table of probabilities as a model of transformers."""

    def __init__(self, table: Table) -> None:
        super().__init__(PreTrainedConfig(vocab_size=table.vocabulary, eos_token_id=EOS, pad_token_id=EOS))
        self.table, self.anything = table, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, **named: Any) -> CausalLMOutputWithPast:
        rows = [self.table[tuple(row)] for row in input_ids.tolist()]
        return CausalLMOutputWithPast(logits=torch.tensor(np.array(rows), dtype=torch.float32)[:, None])


@pytest.mark.parametrize("beams", [2, 3])
def test_where_to_stop(beams: int) -> None:
    """On tables where it matters: what ends early is worse there than what would come later."""
    early = 0
    for seed in range(30):
        table = Table(seed, vocabulary=6, sharp=2.0)
        for normalise, theirs in (("none", {**SUM, "early_stopping": False}), ("mean", HF), ("mean", MEAN)):
            stop = "exact" if theirs is MEAN else "hf"
            with torch.no_grad():
                expected = TableModel(table).generate(
                    torch.tensor([[0]]), max_new_tokens=8, num_beams=beams, num_return_sequences=beams, do_sample=False,
                    use_cache=False, return_dict_in_generate=True, output_scores=True, **theirs)
            found = search([table], beams=beams, max_len=8, normalise=normalise, stop=stop, n_best=beams)[0]
            assert [one.ids for one in found] == [trimmed(row, EOS) for row in expected.sequences]
            assert [one.score for one in found] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
            exact = search([table], beams=beams, max_len=8, normalise=normalise, n_best=beams)[0]
            early += [one.ids for one in found] != [one.ids for one in exact]
    assert early >= 3
