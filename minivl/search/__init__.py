"""Searches over a step protocol: nothing here has ever seen a network.

A decoding is anything with the four verbs of `Steps`; captioners give one (`Captioner.decoding`), and a
table of probabilities in a test is another. `beam_search`, `greedy_search` and `sample_search` find sequences;
`constraints` say what may come next, an `Automaton` what must come, and `Options` are all of it by name.
"""

from . import constraints
from .automaton import Automaton, Phrase, Pieces
from .beam import beam_search, greedy_search
from .choice import STOPS
from .constraints import Constraint
from .options import BEAMS, Options, Said
from .sample import sample_search
from .steps import NORMALISATIONS, Hypothesis, Normalisation, NothingFound, Steps

__all__ = ["BEAMS", "NORMALISATIONS", "STOPS", "Automaton", "Constraint", "Hypothesis", "Normalisation",
           "NothingFound", "Options", "Phrase", "Pieces", "Said", "Steps", "beam_search", "constraints",
           "greedy_search", "sample_search"]
