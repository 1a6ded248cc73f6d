"""Snippets of words in 24 languages, and their character trigrams.

The words and their frequencies are those of the package wordfreq. A tenth of the words (by a hash of the word, so the
same words in every language) is held out: test snippets consist of words that the model has never seen in training.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import wordfreq

LANGUAGES = {
    "bg": "Bulgarian",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "lt": "Lithuanian",
    "nb": "Norwegian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
}
"""Name of each language by its code; the order is that of the model's outputs."""

CODES = tuple(LANGUAGES)
BUCKETS = 32_768
MOST_WORDS = 8

Ids = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def bucket(trigram: str) -> int:
    """The bucket of a trigram; the same in every process, unlike Python's own hash."""
    return zlib.crc32(trigram.encode()) % BUCKETS


def trigrams(text: str) -> Iterator[str]:
    """Yield one trigram for each character as it is typed, and one for the end of the last word.

    A trigram holds the last three characters of the word so far, with spaces before its first; it never reaches over
    into the word before, so a word has the same trigrams wherever it stands. Words are runs of letters (with
    apostrophes), in lower case. A text without any has one trigram, of spaces.
    """
    words = words_of(text)
    if not words:
        yield "   "
    for word in words:
        padded = f"  {word} "
        for end in range(3, len(padded) + 1):
            yield padded[end - 3 : end]


def words_of(text: str) -> list[str]:
    """The words of a text, as trigrams see them."""
    kept = "".join(letter if letter.isalpha() or letter in "'’" else " " for letter in text.lower())
    return kept.split()


def encode(text: str) -> Ids:
    """The buckets of a text's trigrams, [steps]; at least one."""
    return np.array([bucket(trigram) for trigram in trigrams(text)], np.int64)


@dataclass(frozen=True)
class Vocabulary:
    """Words of one language with the frequency by which they are drawn.

    Attributes:
        words: the words.
        cumulative: cumulative frequencies, [words], the last one 1.
        ids: the buckets of all words' trigrams, one word after the other.
        starts: where each word begins in `ids`, [words + 1].
    """

    words: tuple[str, ...]
    cumulative: np.ndarray[tuple[int], np.dtype[np.float64]]
    ids: Ids
    starts: Ids

    @classmethod
    def of(cls, frequencies: dict[str, float]) -> "Vocabulary":
        """The vocabulary of the given words."""
        weights = np.cumsum(list(frequencies.values()))
        encoded = [encode(word) for word in frequencies]
        starts = np.concatenate([[0], np.cumsum([len(each) for each in encoded])])
        return cls(tuple(frequencies), weights / weights[-1], np.concatenate(encoded), starts)


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the tenth that is kept for testing."""
    return zlib.crc32(f"held out? {word}".encode()) % 10 == 0


def load(words: int = 20_000) -> tuple[list[Vocabulary], list[Vocabulary]]:
    """Read the most frequent words of each language.

    Returns:
        One vocabulary a language for training, and one of the held-out words.
    """
    training, held_out = [], []
    for code in CODES:
        frequencies = {
            word: frequency
            for word, frequency in wordfreq.get_frequency_dict(code, wordlist="small").items()
            if words_of(word) == [word]
        }
        chosen = dict(list(frequencies.items())[:words])
        training.append(Vocabulary.of({word: f for word, f in chosen.items() if not is_held_out(word)}))
        held_out.append(Vocabulary.of({word: f for word, f in chosen.items() if is_held_out(word)}))
    return training, held_out


@dataclass(frozen=True)
class Snippets:
    """A batch of snippets.

    Attributes:
        ids: buckets, [batch, time], 0 after the end.
        lengths: steps of each, [batch].
        languages: the language of each, an index into `CODES`, [batch].
        texts: the snippets as text.
    """

    ids: Ids
    lengths: Ids
    languages: Ids
    texts: tuple[str, ...]


def draw(vocabularies: list[Vocabulary], count: int, rng: np.random.Generator, words: int | None = None) -> Snippets:
    """Draw snippets of 1 to 8 words, or of a given number, by frequency, from languages in equal shares."""
    languages = rng.integers(len(vocabularies), size=count)
    sizes = rng.integers(1, MOST_WORDS + 1, count) if words is None else np.full(count, words)
    rows, texts = [], []
    for language, size in zip(languages, sizes, strict=True):
        vocabulary = vocabularies[language]
        chosen = np.searchsorted(vocabulary.cumulative, rng.random(size))
        rows.append(np.concatenate([vocabulary.ids[vocabulary.starts[k] : vocabulary.starts[k + 1]] for k in chosen]))
        texts.append(" ".join(vocabulary.words[k] for k in chosen))
    return Snippets(*pad(rows), languages, tuple(texts))


def pad(rows: list[Ids]) -> tuple[Ids, Ids]:
    """Rows of different length as [batch, time], and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
    return ids, lengths
