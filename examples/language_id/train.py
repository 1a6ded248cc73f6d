"""Training: as many snippets as fit into a given time."""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from .data import MOST_WORDS, Snippets, Vocabulary, draw
from .model import LanguageIdentifier

BATCH = 64
RATE = 8e-3


def train(model: LanguageIdentifier, vocabularies: list[Vocabulary], seconds: float, seed: int = 0) -> int:
    """Train by Adam with one cosine decay over the given wall-clock time.

    The snippets of a batch have the same number of words, so that little of it is padding.

    The loss is the mean of the cross-entropies of every step's guess and of the answer: the guess should be good early,
    and the answer best.

    Returns:
        How many snippets were seen.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    model.train()
    started = time.monotonic()
    seen = 0
    bar = "training {percentage:3.0f}%|{bar:30}| {postfix}"
    with tqdm(total=100, bar_format=bar) as progress:
        while (part := (time.monotonic() - started) / seconds) < 1:
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * part))
            snippets = draw(vocabularies, BATCH, rng, words=int(rng.integers(1, MOST_WORDS + 1)))
            loss, accuracy = step(model, snippets)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            seen += BATCH
            progress.n = 100 * part
            progress.set_postfix_str(f"{seen:,} snippets, loss {loss.item():.3f}, right {accuracy:.1%}")
        progress.n = 100
        progress.refresh()
    model.eval()
    return seen


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
