"""Captions told to a captioner: the ids, log-probabilities and looks are those of a pass over them."""

from __future__ import annotations

import pytest
import torch
from random_models import captioner, pictures, randomise

from minivl.errors import InputError
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.nn.record import AttnRecord
from minivl.text.tokenizer import Tokenizer
from minivl.train.telling import tell

WORDS = Tokenizer.train(["a red dog", "two birds sing"])


def model(max_len: int = 6) -> Captioner:
    config = captioner(vocab_size=WORDS.vocab_size, max_len=max_len, pad_id=WORDS.pad_id, bos_id=WORDS.bos_id,
                       eos_id=WORDS.eos_id).config
    made = Captioner(CaptionerConfig(config.encoder, config.decoder), tokenizer=WORDS)
    randomise(made, 5, 0.4)
    return made


def test_each_caption_is_as_if_it_were_told_alone() -> None:
    texts = ["two red birds", "dog", "a cat", "", "a red dog a red dog"]
    images, made = pictures(len(texts)), model()
    found = tell(made, images, texts, layer=1, heads=(0, 2))
    for place, (text, one) in enumerate(zip(texts, found)):
        ids = [WORDS.bos_id, *WORDS.encode(text), WORDS.eos_id][:7]
        assert one.caption.ids == tuple(ids) and one.caption.text == text and one.whole == (place < 4)
        assert [word.text for word in one.caption.words or ()] == [word for word in text.split() if word != "cat"]
        record = AttnRecord(sites=("cross",))
        with torch.no_grad():
            logp = made(images[place:place + 1], torch.tensor([ids[:-1]]), attn=record).log_softmax(-1)[0]
        likely = float(sum(logp[step, id] for step, id in enumerate(ids[1:])))
        assert one.caption.logprob == pytest.approx(likely, abs=1e-4) and likely < -0.5
        torch.testing.assert_close(one.cross, record["cross", 1][0, [0, 2]].mean(0), atol=1e-6, rtol=0)
        assert one.cross.shape == (len(ids) - 1, 7) and one.n_prefix == 1
    everything = tell(made, images, texts, layer=1)
    assert (everything[0].cross - found[0].cross).abs().max() > 1e-3


def test_what_cannot_be_told() -> None:
    with pytest.raises(InputError, match="without a tokenizer cannot be told"):
        tell(captioner(), pictures(1), ["a"], layer=0)
    with pytest.raises(InputError, match="2 captions for 1 images"):
        tell(model(), pictures(1), ["a", "dog"], layer=0)
    with pytest.raises(InputError, match="no layer of cross 7"):
        tell(model(), pictures(1), ["a"], layer=7)
