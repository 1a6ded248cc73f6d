"""One step function, run on what it chooses itself: greedy decoding as a loop that stops when every row has ended."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from .checks import INTEGER_DTYPES, CellError, check_size
from .lengths import align

__all__ = ["greedy"]

State = TypeVar("State")


def greedy(
    step: Callable[..., tuple[State, Tensor]],
    state: State,
    start: int | Tensor,
    *,
    end: int,
    max_steps: int,
    context: Sequence[Tensor] = (),
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Take the most likely token at every step, until every row has ended.

    `state` is a tensor or a (named) tuple, list or dict of tensors. The weights are what `step` closes over. In eager
    mode the steps run in a Python loop; under `torch.export` they become one `while_loop`, an ONNX `Loop`, whose batch
    stays dynamic. Both stop at the step at which the last row ends. A row does not depend on the others.

    Args:
        step: `(state, tokens, *context) -> (state, logits)` for one step: tokens int64 [batch], logits
            [batch, vocabulary]; a new state has the shapes and dtypes of the old one. It must not change its arguments
            in place.
        state: the initial state, [batch, ...] each; a decoder's is what the encoder ends with.
        start: the token that the first step is given: one for all rows, or int64 [batch].
        end: the token that ends a row, and that fills the row after it.
        max_steps: most tokens of a row, and the size of the result's axis.
        context: tensors [batch, ...] that every step is given unchanged, such as what an attention reads.
        limits: integer [batch], most tokens of each row if that is less than `max_steps`; 0 gives an empty row.

    Returns:
        tokens int64 [batch, max_steps], `end` at and after a row's end; lengths int64 [batch], the tokens of a row
        before its end; and the state of each row, which has read `start` and the row's tokens, but for the last one
        where the row was cut at `max_steps` or its limit.

    Raises:
        CellError: if an argument is not accepted, or `step` returns something else.
    """
    run = Step("greedy", step, state, start, end=end, max_steps=max_steps, context=context, limits=limits)
    position = torch.arange(max_steps, device=run.start.device)

    def going(count: Tensor, _token: Tensor, ended: Tensor, *_rest: Tensor) -> Tensor:
        return (count < max_steps) & ~ended.all()

    def body(count: Tensor, token: Tensor, ended: Tensor, tokens: Tensor, *old: Tensor) -> tuple[Tensor, ...]:
        new, logits = run(old, token)
        token = torch.where(ended, end, logits.argmax(-1))
        tokens = torch.where(position == count, token.unsqueeze(1), tokens)
        kept = [torch.where(align(ended, leaf), before, leaf) for leaf, before in zip(new, old, strict=True)]
        ended = token == end
        if run.limits is not None:
            ended = ended | (count + 1 >= run.limits)
        return count + 1, token, ended, tokens, *kept

    ended = torch.zeros_like(run.start, dtype=torch.bool) if run.limits is None else run.limits <= 0
    tokens = torch.full_like(run.start, end).unsqueeze(1).repeat(1, max_steps)
    carried = (torch.zeros_like(position[0]), run.start, ended, tokens, *run.initial)
    _, _, _, tokens, *final = loop_while(going, body, carried)
    return tokens, (tokens != end).sum(1), pytree.tree_unflatten(final, run.structure)


class Step:
    """A user's step as a function of flat tensors, with its checked arguments.

    Args:
        caller: the function that errors name.
        step: the user's.
        state: its initial state.
        start: the first token, or that of each row.
        end: the token that ends a row.
        max_steps: most tokens of a row.
        context: tensors that every step is given.
        limits: most tokens of each row.

    Attributes:
        initial: the tensors of the initial state.
        structure: how they are put together.
        start: int64 [batch].
        limits: int64 [batch], at most `max_steps`; None if the rows have no limits of their own.
    """

    def __init__(
        self,
        caller: str,
        step: Callable[..., tuple[Any, Tensor]],
        state: Any,
        start: int | Tensor,
        *,
        end: int,
        max_steps: int,
        context: Sequence[Tensor],
        limits: Tensor | None,
    ) -> None:
        check_size(caller, "end", end, least=0)
        check_size(caller, "max_steps", max_steps)
        self._caller, self._step, self._end = caller, step, end
        self.initial, self.structure = pytree.tree_flatten(state)
        self.context = list(context)
        for what, leaves in (("state", self.initial), ("context", self.context)):
            for leaf in leaves:
                if not isinstance(leaf, Tensor) or not leaf.dim():
                    found = "a tensor without axes" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                    raise CellError(f"{caller}: {what} holds {found}; accepted are tensors [batch, ...]")
        self.start = self._rows("start", start)
        self.limits = None if limits is None else self._rows("limits", limits).clamp(max=max_steps)
        if not torch.compiler.is_exporting():
            batch = self.start.shape[0]
            for leaf in (*self.initial, *self.context, *([] if self.limits is None else [self.limits])):
                if leaf.shape[0] != batch:
                    raise CellError(
                        f"{caller}: a tensor of shape {list(leaf.shape)} stands beside {batch} rows; accepted are "
                        "state, context, start and limits of one batch size"
                    )

    def __call__(self, state: Sequence[Tensor], tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """One step: the new state's tensors, and the logits [batch, vocabulary]."""
        new, logits = self._step(pytree.tree_unflatten(list(state), self.structure), tokens, *self.context)
        leaves: list[Tensor] = pytree.tree_leaves(new)
        got, accepted = ([(list(each.shape), each.dtype) for each in some] for some in (leaves, state))
        if got != accepted:
            raise CellError(f"{self._caller}: the step's new state is {got}; accepted is what it was given, {accepted}")
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise CellError(f"{self._caller}: the step's logits are {found}; accepted is a float [batch, vocabulary]")
        if not self._end < logits.shape[1]:
            raise CellError(f"{self._caller}: end is {self._end}; accepted is 0 to {logits.shape[1] - 1}, as of logits")
        return leaves, logits

    def _rows(self, what: str, value: int | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            if value.dim() != 1 or value.dtype not in INTEGER_DTYPES:
                raise CellError(
                    f"{self._caller}: {what} is {value.dtype} {list(value.shape)}; accepted are integers [batch]"
                )
            return value.to(torch.int64)
        check_size(self._caller, what, value, least=0)
        like = next(iter((*self.initial, *self.context)), None)
        if like is None:
            raise CellError(f"{self._caller}: {what} is {value} and state holds no tensor; accepted is {what} [batch]")
        rows: Tensor = like.new_full(like.shape[:1], value, dtype=torch.int64)
        return rows


def loop_while(
    condition: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], carried: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Repeat `carried = body(*carried)` while `condition(*carried)`; under export as torch's `while_loop`."""
    if not torch.compiler.is_exporting():
        while condition(*carried):
            carried = body(*carried)
        return carried

    # while_loop refuses a tensor that stands twice among those it carries, or that is returned as it came in, and it
    # compares strides.
    def copying(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.clone(memory_format=torch.contiguous_format) for each in body(*given))

    with warnings.catch_warnings():
        # The tracer looks at .grad of whatever the step closes over, and warns of itself where that is no parameter.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        found: tuple[Tensor, ...] = while_loop(  # type: ignore[no-untyped-call]
            condition, copying, tuple(each.clone(memory_format=torch.contiguous_format) for each in carried)
        )
    return found
