"""Training: a given number of snippets, drawn from a seed, so that a busy machine takes longer and learns the same."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from .data import MOST_WORDS, Snippets, Vocabulary, draw
from .model import LanguageIdentifier

SNIPPETS = 80_000
"""Takes 230 s of processor time, two minutes of two cores, and gives a held-out accuracy of 72.8 %."""

BATCH = 32
RATE = 8e-3


def train(model: LanguageIdentifier, vocabularies: list[Vocabulary], snippets: int = SNIPPETS, seed: int = 0) -> None:
    """Train by Adam, with one cosine decay over all snippets.

    The snippets of a batch have the same number of words, so that little of it is padding.

    The loss is the mean of the cross-entropies of every step's guess and of the answer: the guess should be good early,
    and the answer best.

    Args:
        model: changed in place.
        vocabularies: one a language.
        snippets: how many to draw, rounded up to whole batches.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    model.train()
    steps = -(-snippets // BATCH)
    bar = "training {percentage:3.0f}%|{bar:30}| {postfix}"
    with tqdm(total=steps, bar_format=bar) as progress:
        for done in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * done / steps))
            batch = draw(vocabularies, BATCH, rng, words=int(rng.integers(1, MOST_WORDS + 1)))
            loss, accuracy = step(model, batch)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            seen = (done + 1) * BATCH
            progress.set_postfix_str(f"{seen:,} snippets, loss {loss.item():.3f}, right {accuracy:.1%}", refresh=False)
            progress.update()
    model.eval()


def step(model: LanguageIdentifier, snippets: Snippets) -> tuple[torch.Tensor, float]:
    """The loss of a batch, and the part of its answers that are right."""
    tokens, lengths, languages = (
        torch.from_numpy(each) for each in (snippets.ids, snippets.lengths, snippets.languages)
    )
    guesses, answer = model(tokens, lengths)
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    targets = languages[:, None].expand_as(valid)
    loss = F.cross_entropy(guesses[valid], targets[valid]) + F.cross_entropy(answer, languages)
    return loss / 2, (answer.argmax(1) == languages).float().mean().item()


def predict(model: LanguageIdentifier, snippets: Snippets) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The predicted language of each snippet."""
    with torch.inference_mode():
        _, answer = model(torch.from_numpy(snippets.ids), torch.from_numpy(snippets.lengths))
    return answer.argmax(1).numpy()
