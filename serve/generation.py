"""Generation: a model's own words fed back to it, one token a step.

The step graph is a causal model with states, one input of tokens over time and an output of scores over tokens. A
request is its prompt; after it every step's token is drawn from the scores of the step before. Between two tokens a
generation is a request like any other: it joins and leaves the runs of the others at any token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cellport.errors import InvalidRequestError
from cellport.manifest import BATCH, TIME

from .codec import Array
from .contract import Bound, Contract

TOKENS = "tokens"
"""Name of the output in which the tokens are answered."""

Finish = Literal["stop", "length"]

_MOST = 2**20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and when enough of them are.

    Attributes:
        max_tokens: tokens after which the generation is over.
        temperature: that scores are divided by; 0 for the token with the highest score, the first of them if there are
            several.
        top_k: draw from so many tokens of the highest scores; 0 for all.
        top_p: draw from the fewest tokens of the highest probabilities that together have at least this one.
        seed: of the draws; None for another one each time.
        stop_tokens: tokens after which the generation is over; they are answered too.
        token_input: name of the input of tokens; empty for the only one that can be it.
        scores_output: name of the output of scores; empty for the only one that can be it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: Sequence[int] = ()
    token_input: str = ""
    scores_output: str = ""

    def __post_init__(self) -> None:
        checks: list[tuple[str, object, bool, str]] = [
            ("max_tokens", self.max_tokens, 1 <= self.max_tokens <= _MOST, f"1 to {_MOST}"),
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k, self.top_k >= 0, "at least 0, and 0 for all tokens"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "at least 0"),
        ]
        for name, value, right, accepted in checks:
            if not right:
                raise InvalidRequestError(f"{name} is {value}; accepted: {accepted}")


class Generation:
    """One generation on its way.

    Args:
        sampling: how it is drawn.
        contract: the model's.

    Attributes:
        token_input: name of the input of tokens.
        scores_output: name of the output of scores.
        tokens: what has been generated.
        finish: why it is over; None while it is not.

    Raises:
        InvalidRequestError: the model does not generate, or more than one of its tensors could be meant.
    """

    def __init__(self, sampling: Sampling, contract: Contract) -> None:
        self.sampling = sampling
        self.token_input, self.scores_output = _roles(sampling, contract)
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self._random = np.random.Generator(np.random.PCG64(sampling.seed)) if sampling.temperature else None

    def draw(self, scores: Array) -> int:
        """Draw a token from scores [tokens], without keeping it."""
        if self._random is None:
            return int(scores.argmax())
        kept = probabilities(scores, self.sampling)
        return int(np.searchsorted(np.cumsum(kept), self._random.random(), side="right").clip(max=len(kept) - 1))

    def keep(self, token: int) -> None:
        """Add a token, and be over if it is the last."""
        self.tokens.append(token)
        if token in self.sampling.stop_tokens:
            self.finish = "stop"
        elif len(self.tokens) >= self.sampling.max_tokens:
            self.finish = "length"

    def next(self, bound: Bound) -> Bound:
        """Return the request of the step after the last token."""
        inputs = dict(bound.inputs)
        dtype = inputs[self.token_input].dtype
        inputs[self.token_input] = np.full((1, 1), self.tokens[-1], dtype)
        return Bound(rows=1, time=1, inputs=inputs, lengths=None, states={}, outputs=bound.outputs, sizes=bound.sizes)


def probabilities(scores: Array, sampling: Sampling) -> Array:
    """Return the probabilities that tokens are drawn with: float64 [tokens], of scores [tokens].

    Of tokens with equal scores, the first count as the higher ones.
    """
    scaled = scores.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    if sampling.top_p < 1:
        enough = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        order, weights = order[:enough], weights[:enough] / weights[:enough].sum()
    found = np.zeros(len(scaled))
    found[order] = weights
    return found


def advance(generations: Sequence[Generation], scores: Sequence[Array]) -> None:
    """Draw and keep the next token of each generation from its scores [tokens]."""
    greedy = [index for index, each in enumerate(generations) if not each.sampling.temperature]
    if len(greedy) > 1 and len({len(scores[index]) for index in greedy}) == 1:
        found = dict(zip(greedy, np.stack([scores[index] for index in greedy]).argmax(1).tolist(), strict=True))
    else:
        found = {}
    for index, (each, row) in enumerate(zip(generations, scores, strict=True)):
        each.keep(found[index] if index in found else each.draw(row))


def _roles(sampling: Sampling, contract: Contract) -> tuple[str, str]:
    """Return the names of the input of tokens and the output of scores."""
    if not contract.recurrent or not contract.cuts:
        raise InvalidRequestError("max_tokens is given, but the model is not causal with states; accepted: without it")
    inputs = [
        each.name
        for each in contract.manifest.inputs
        if each.role == "sequence" and each.axes == (BATCH, TIME) and each.dtype in ("int32", "int64")
    ]
    timed = [each.name for each in contract.manifest.inputs if each.role == "sequence"]
    if len(timed) > 1:
        raise InvalidRequestError(
            f"max_tokens is given, but inputs {timed} have a time axis; accepted: models where only tokens have one"
        )
    token = _role("token_input", sampling.token_input, inputs, "inputs of integers with axes ['batch', 'time']")
    outputs = [
        each.name
        for each in contract.manifest.outputs
        if each.dtype in ("float16", "float32", "float64")
        and each.axes[:-1] in ((BATCH, TIME), (BATCH,))
        and isinstance(each.axes[-1], int)
    ]
    scores = _role("scores_output", sampling.scores_output, outputs, "outputs of floats over a fixed number of tokens")
    count, limits = contract.outputs[scores].axes[-1], contract.inputs[token].range
    if limits is not None and (limits.minimum > 0 or int(count) - 1 > limits.maximum):
        raise InvalidRequestError(
            f"output {scores!r} scores tokens 0 to {int(count) - 1}, but input {token!r} takes {limits.minimum} to "
            f"{limits.maximum}"
        )
    return token, scores


def _role(parameter: str, asked: str, found: Sequence[str], what: str) -> str:
    if asked and asked not in found:
        raise InvalidRequestError(
            f"{parameter} is {asked!r}; accepted: {', '.join(map(repr, found)) or 'none'}, {what}"
        )
    if not asked and len(found) != 1:
        raise InvalidRequestError(
            f"the model has {len(found)} {what}: {', '.join(map(repr, found)) or 'none'}; accepted: one, or one named "
            f"by {parameter}"
        )
    return asked or found[0]
