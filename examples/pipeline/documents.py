"""Documents of different lengths: paragraphs of the installed packages' descriptions, and words in 24 languages."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions

import numpy as np

from examples.language_id.data import CODES, Vocabulary, words_of

MOST_WORDS = 400
"""Words of the longest document; a longer paragraph is left out."""


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        source: the package whose description it is from, or "wordfreq".
        text: what it says.
        language: its language's code, where it is known.
    """

    source: str
    text: str
    language: str | None = None


def paragraphs() -> Iterator[Document]:
    """Yield the paragraphs of every installed package's description, in the order of the packages' names."""
    found = {each.name.lower(): each for each in distributions() if each.name}
    for name in sorted(found):
        description = found[name].metadata.get_payload()  # type: ignore[attr-defined]
        for text in str(description or "").replace("\r\n", "\n").split("\n\n"):
            if 0 < len(words_of(text)) <= MOST_WORDS:
                yield Document(name, " ".join(text.split()))


def drawn(vocabularies: list[Vocabulary], count: int, rng: np.random.Generator) -> Iterator[Document]:
    """Yield documents of words drawn by their frequency: 1 to 120 of them, log-normal, 12 in the median."""
    for _ in range(count):
        language = int(rng.integers(len(vocabularies)))
        vocabulary = vocabularies[language]
        size = int(np.clip(rng.lognormal(np.log(12), 0.9), 1, 120))
        chosen = np.searchsorted(vocabulary.cumulative, rng.random(size))
        yield Document("wordfreq", " ".join(vocabulary.words[k] for k in chosen), CODES[language])
