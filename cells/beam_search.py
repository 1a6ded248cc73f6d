"""Beam search as a loop that stops when no hypothesis can become better than the ended ones."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from .checks import CellError, check_number, check_size
from .generation import Step, loop_while

__all__ = ["beam_search"]

State = TypeVar("State")
_NEVER = float("-inf")


def beam_search(
    step: Callable[..., tuple[State, Tensor]],
    state: State,
    start: int | Tensor,
    *,
    end: int,
    beams: int,
    max_steps: int,
    length_penalty: float = 0.0,
    context: Sequence[Tensor] = (),
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Look for the likeliest sequences of tokens with several hypotheses a row.

    A hypothesis Y scores log P(Y) / ((5 + |Y|) / 6) ** length_penalty (Wu et al. 2016, arXiv 1609.08144, equation 14,
    without its coverage term), where |Y| counts the end token. At every step the `beams` likeliest of all hypotheses
    that go on are kept, and beside them the `beams` best of all that have ended; an ended one keeps its score. A row
    stops when its worst ended hypothesis is as good as the best that any other could become, which changes nothing in
    the answer, or at its last step, where those that have not ended are scored as they are. A row does not depend on
    the others. How the loop runs is told at `greedy`.

    Args:
        step: `(state, tokens, *context) -> (state, logits)` for one step: tokens int64 [rows], logits
            [rows, vocabulary], with `beams` rows for each one of the batch; probabilities are their softmax. A new
            state has the shapes and dtypes of the old one. It must not change its arguments in place.
        state: the initial state, [batch, ...] each.
        start: the token that the first step is given: one for all rows, or int64 [batch].
        end: the token that ends a hypothesis, and that fills what follows it.
        beams: hypotheses of a row.
        max_steps: most tokens of a hypothesis, and the size of the result's axis.
        length_penalty: alpha of equation 14, at least 0; 0 compares the probabilities themselves, more favours longer
            hypotheses.
        context: tensors [batch, ...] that every step is given unchanged, such as what an attention reads.
        limits: integer [batch], most tokens of each row if that is less than `max_steps`; 0 gives no hypothesis.

    Returns:
        tokens int64 [batch, beams, max_steps], best first, `end` at and after a hypothesis' end; their scores
        [batch, beams] in the dtype of the logits, -inf where there are fewer hypotheses than `beams`; and their lengths
        int64 [batch, beams], tokens before the end.

    Raises:
        CellError: if an argument is not accepted, or `step` returns something else.
    """
    check_size("beam_search", "beams", beams)
    check_number("beam_search", "length_penalty", length_penalty)
    if length_penalty < 0:
        raise CellError(f"beam_search: length_penalty is {length_penalty!r}; accepted is a number of at least 0")
    run = Step("beam_search", step, state, start, end=end, max_steps=max_steps, context=context, limits=limits)
    with torch.no_grad(), disable_proxy_modes_tracing():
        _, example = run(run.initial, run.start)  # only a trial tells the vocabulary and the precision of scores
    size = example.shape[1]
    run.context = [_repeated(each, beams) for each in run.context]
    position = torch.arange(max_steps, device=run.start.device)
    is_end = torch.arange(size, device=run.start.device) == end
    first = torch.arange(run.start.shape[0], device=run.start.device).unsqueeze(1) * beams
    limit = torch.full_like(run.start, max_steps) if run.limits is None else run.limits

    def penalty(length: Tensor) -> Tensor:
        return ((5 + length.to(example.dtype)) / 6) ** length_penalty

    most = penalty(limit).unsqueeze(1)
    limit = limit.unsqueeze(1)

    def going(count: Tensor, _token: Tensor, likelihood: Tensor, *_rest: Tensor) -> Tensor:
        return (count < max_steps) & (likelihood > _NEVER).any()

    def body(
        count: Tensor, token: Tensor, likelihood: Tensor, live: Tensor, score: Tensor, ended: Tensor, *old: Tensor
    ) -> tuple[Tensor, ...]:
        """One step.

        Args:
            count: steps done.
            token: [batch * beams], the last token of each live hypothesis.
            likelihood: [batch, beams], log P of the live hypotheses; -inf where there is none.
            live: [batch, beams, max_steps], their tokens.
            score: [batch, beams], of the ended hypotheses, best first; -inf where there is none.
            ended: [batch, beams, max_steps], their tokens.
            old: the state's tensors [batch * beams, ...].
        """
        new, logits = run(old, token)
        total = logits.log_softmax(-1).reshape(-1, beams, size) + likelihood.unsqueeze(2)
        closing = total[:, :, end]
        likelihood, best = torch.where(is_end, _NEVER, total).flatten(1).topk(beams, 1)
        parent, token = best // size, best % size
        longer = torch.where(position == count, token.unsqueeze(2), _chosen(live, parent))
        count = count + 1
        last = count >= limit
        cut = torch.where(last, likelihood, _NEVER)
        score, kept = torch.cat([score, torch.cat([closing, cut], 1) / penalty(count)], 1).topk(beams, 1)
        ended = _chosen(torch.cat([ended, live, longer], 1), kept)
        # Likelihoods only fall, and the longest hypothesis is divided by most.
        stopped = last | (score[:, -1:] >= likelihood[:, :1] / most)
        rows = (first + parent).flatten()
        states = [leaf.index_select(0, rows) for leaf in new]
        return count, token.flatten(), torch.where(stopped, _NEVER, likelihood), longer, score, ended, *states

    none = torch.full_like(run.start, _NEVER, dtype=example.dtype).unsqueeze(1).repeat(1, beams)
    one = torch.where((torch.arange(beams, device=none.device) == 0) & (limit > 0), 0.0, none)
    blank = torch.full_like(run.start, end)[:, None, None].repeat(1, beams, max_steps)
    states = [_repeated(leaf, beams) for leaf in run.initial]
    carried = (torch.zeros_like(position[0]), _repeated(run.start, beams), one, blank, none, blank, *states)
    _, _, _, _, score, ended, *_ = loop_while(going, body, carried)
    tokens = torch.where((score > _NEVER).unsqueeze(2), ended, end)
    return tokens, score, (tokens != end).sum(2)


def _repeated(tensor: Tensor, beams: int) -> Tensor:
    """Each row [batch, ...] as many times as there are beams, one after the other: [batch * beams, ...]."""
    return tensor.unsqueeze(1).expand(-1, beams, *tensor.shape[1:]).flatten(0, 1)


def _chosen(hypotheses: Tensor, index: Tensor) -> Tensor:
    """Of hypotheses [batch, some, max_steps] those of the index [batch, beams]."""
    return hypotheses.gather(1, index.unsqueeze(2).expand(-1, -1, hypotheses.shape[2]))
