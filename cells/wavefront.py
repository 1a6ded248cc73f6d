"""One step function, run over the anti-diagonals of a grid of any number of dimensions."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .checks import CellError
from .diagonals import Diagonals
from .lengths import align
from .predecessors import Part, Predecessors
from .recurrence import unroll
from .sizes import check_sizes, mask_grid, valid_positions
from .windows import Windows

__all__ = ["wavefront", "wavefront_outputs"]

State = TypeVar("State")
Input = TypeVar("Input")
Output = TypeVar("Output")


def wavefront(
    step: Callable[[tuple[State, ...], Input], tuple[State, Output]],
    state: State,
    inputs: Input,
    grid: Sequence[int],
    *,
    along: int = -1,
    apart: int | None = None,
    sizes: Tensor | None = None,
    sides: Sequence[Any] | None = None,
    flips: Sequence[Collection[int]] | None = None,
) -> tuple[Output, State]:
    """Run a step function over a grid, all positions of an anti-diagonal at once.

    Position p = (p_1, ..., p_N) needs its predecessors p - e_d alone, so that those of equal sum are independent
    (Graves, Fernandez, Schmidhuber 2007, arXiv 0705.2011). One step computes one anti-diagonal: it has a slot for each
    place along all dimensions but one, whose coordinate follows from the diagonal's number. In eager mode the
    diagonals are a Python loop; under `torch.export` they are one `scan` of sum(n_d - 1) + 1 steps, and the batch and
    all sizes of the grid stay dynamic.

    `state`, `inputs` and the step's output are each a tensor or a (named) tuple, list or dict of tensors. The weights
    are what `step` closes over.

    Args:
        step: `(before, input) -> (state, output)` for all slots. `before` has N states, that of the predecessor along
            each dimension, as the step returned it there. Its tensors are [rows, ...], with a row for each slot (of
            the dimensions other than `along`, in order) and each image, the batch being the fastest; a new state has
            the shapes and dtypes of an old one. It must not change its arguments in place. What it gives for a slot
            without a position is dropped.
        state: what is outside of the grid, mostly zeros, [batch, ...] each.
        inputs: [n_1, ..., n_N, batch, ...] each; a structure without tensors, such as `()`, if there are none.
        grid: the sizes n_1 to n_N, such as `x.shape[:2]`.
        along: the dimension that has no slots. A step costs as much as all slots: the longest dimension is best here.
        apart: a dimension other than `along` whose slots have weights of their own: then what the step sees is
            [n_apart, rows, ...]. An output may be that of the last of these slots alone, [1, rows, ...]; it has 1
            position along this dimension in the result.
        sizes: integer [batch, N], the size of each image, 0 to that of the axis; a negative one means the whole axis.
            What the padding holds is never read, and the outputs there are 0.
        sides: for each dimension None or what enters the grid there instead of `state`, a state of [the other n...,
            batch, ...], in which a tensor may be None.
        flips: for several runs in different directions at once, the dimensions that each goes backwards along, from
            each image's own far end. Then `state` is [directions, batch, ...], what the step sees [directions, rows,
            ...] (or [directions, n_apart, rows, ...]), and `inputs`, `sides` and results have the directions behind
            the batch; an axis of 1 direction of an input stands for all of them.

    Returns:
        The outputs [n_1, ..., n_N, batch, ...], in the structure that `step` returns, and the state that leaves at
        each image's own far side of the dimension `along`, [the other n..., batch, ...]: `sides[along]` of the next
        piece. `cells.sizes.far_side` selects from the outputs what leaves at the others.

    Raises:
        CellError: if the shapes of `inputs`, `grid`, `sides` and `sizes` do not agree.
    """
    return _run(step, state, inputs, grid, along=along, apart=apart, sizes=sizes, sides=sides, flips=flips, blank=False)


def wavefront_outputs(
    step: Callable[[tuple[State, ...], Input], tuple[State, Output]],
    state: State,
    inputs: Input,
    grid: Sequence[int],
    *,
    along: int = -1,
    apart: int | None = None,
    sizes: Tensor | None = None,
    sides: Sequence[Any] | None = None,
    flips: Sequence[Collection[int]] | None = None,
    parts: Sequence[Sequence[Part]] | None = None,
) -> Output:
    """The outputs of a `wavefront` that starts from nothing, which is less work in an exported file.

    The condition: `state` is zeros, no side is given for `along`, and a step whose states and inputs are zeros gives
    states of zeros. A slot without a position then needs no holding: its inputs are zeros, so that it stays at zeros
    before its first position, and what it makes after its last one reaches no position. In a file a step computes the
    slots between the first and the last position of its diagonal, where all of its operators are known to treat rows
    alike.

    Args:
        step: as of `wavefront`.
        state: as of `wavefront`, zeros.
        inputs: as of `wavefront`.
        grid: as of `wavefront`.
        along: as of `wavefront`.
        apart: as of `wavefront`.
        sizes: as of `wavefront`.
        sides: as of `wavefront`.
        flips: as of `wavefront`.
        parts: for each dimension and each tensor of the state from where to where in the last axis the step gets to see
            it of the predecessor along this dimension, None being all of it; so are the `sides` there.

    Returns:
        The outputs, as of `wavefront`.

    Raises:
        CellError: as of `wavefront`.
    """
    return _run(
        step,
        state,
        inputs,
        grid,
        along=along,
        apart=apart,
        sizes=sizes,
        sides=sides,
        flips=flips,
        parts=parts,
        blank=True,
    )[0]


def _run(
    step: Callable[[tuple[State, ...], Any], tuple[State, Output]],
    state: State,
    inputs: Any,
    grid: Sequence[int],
    *,
    along: int,
    apart: int | None,
    sizes: Tensor | None,
    sides: Sequence[Any] | None,
    flips: Sequence[Collection[int]] | None,
    blank: bool,
    parts: Sequence[Sequence[Part]] | None = None,
) -> tuple[Output, State]:
    """Both of the above; with `blank` a file's last state is of no use."""
    leaves, structure = pytree.tree_flatten(inputs)
    border, state_structure = pytree.tree_flatten(state)
    leading = 0 if flips is None else 1
    along, apart = _check_grid(grid, along, apart, leaves, border, flips)
    batch = border[0].shape[leading]
    entering = _check_sides(sides, grid, border, state_structure)
    if sizes is not None:
        sizes = check_sizes(sizes, grid, batch)
    if not torch.compiler.is_exporting() and 0 in grid:
        options: dict[str, Any] = {"along": along, "apart": apart, "flips": flips, "parts": parts}
        return _empty(step, state, leaves, structure, grid, sizes, entering, **options)
    valid = None if sizes is None else valid_positions(sizes, grid)
    if valid is not None and not torch.compiler.is_exporting():
        # Dropping what comes out is not enough: the gradient of a NaN input would still be NaN * 0 inside the step.
        leaves = [mask_grid(leaf, valid) for leaf in leaves]
    diagonals = Diagonals(grid, along, apart, batch, sizes, flips, border[0].device)
    blank = blank and torch.compiler.is_exporting()
    sides_of = [{i: diagonals.enter_side(side, d, blank) for i, side in of.items()} for d, of in enumerate(entering)]
    initial = [
        sides_of[along][i] if i in sides_of[along] else diagonals.enter_same(leaf, along)
        for i, leaf in enumerate(border)
    ]
    near = [{} if d == along else sides for d, sides in enumerate(sides_of)]
    windows = None
    if blank and diagonals.in_rows:
        windows = Windows(diagonals, border=not entering[diagonals.in_rows[0]])
        initial = [windows.start(leaf) for leaf in initial]
    every: Sequence[Part] = [None] * len(border)
    predecessors = [
        Predecessors(diagonals, d, border, entering[d], every if parts is None else parts[d], windows)
        for d in range(len(grid))
    ]
    ends = None if windows is None else (windows.cut(), windows.fill(windows.border), windows.fill(False))

    def diagonal(old: list[Tensor], scanned: Any) -> tuple[list[Tensor], Output]:
        input, near, bounds, *holds = scanned
        if ends is not None:
            input = [ends[0](leaf, bounds) for leaf in input]
        seen = [each(old, near[d], bounds) for d, each in enumerate(predecessors)]
        before = tuple([pytree.tree_unflatten(each, state_structure) for each in seen])
        new, output = step(before, pytree.tree_unflatten(input, structure))
        new_leaves = _check_state(new, old, state_structure)
        if ends is not None:
            new_leaves = [ends[1](leaf, bounds) for leaf in new_leaves]
            output = pytree.tree_map(lambda leaf: ends[2](leaf, bounds), output)
        for each in holds:
            # Before its first position a slot keeps what enters there, after its last one what leaves there.
            new_leaves = [torch.where(align(each, now), now, then) for now, then in zip(new_leaves, old, strict=True)]
        return new_leaves, output

    scanned = [[diagonals.enter(leaf, blank) for leaf in leaves], near, [] if windows is None else windows.scanned]
    if not blank:
        holds = diagonals.valid()
        for _ in range(min(leaf.dim() for leaf in initial) + 1 - holds.dim()):
            holds = holds.unsqueeze(-1)
        scanned.append(holds)
    outputs, last = unroll(diagonal, initial, scanned)
    if windows is not None:
        last = [windows.without_border(leaf) for leaf in last]
    outputs = pytree.tree_map(diagonals.leave, outputs)
    final = [diagonals.leave_far(leaf) for leaf in last]
    if valid is not None:
        outputs = pytree.tree_map(functools.partial(_masked, valid, diagonals), outputs)
    if sizes is not None and len(grid) > 1:
        others = [d for d in range(len(grid)) if d != along]
        inside = valid_positions(sizes[:, others], [grid[d] for d in others])
        final = [mask_grid(leaf, inside) for leaf in final]
    return outputs, pytree.tree_unflatten(final, state_structure)


def _masked(valid: Tensor, diagonals: Diagonals, values: Tensor) -> Tensor:
    """The outputs of positions that images have, 0 elsewhere."""
    alone = None if diagonals.apart is None else diagonals.alone(values, diagonals.apart)
    return mask_grid(values, valid if alone is None else valid.narrow(alone, diagonals.grid[alone] - 1, 1))


def _empty(
    step: Callable[[tuple[State, ...], Any], tuple[State, Any]],
    state: State,
    leaves: list[Tensor],
    structure: Any,
    grid: Sequence[int],
    sizes: Tensor | None,
    entering: list[dict[int, Tensor]],
    **options: Any,
) -> tuple[Any, Any]:
    """A grid without positions: what a grid of a position more gives where no image has that position."""
    border, state_structure = pytree.tree_flatten(state)
    larger = [max(1, n) for n in grid]
    along = options["along"]

    def filled(leaf: Tensor, dimensions: Sequence[int]) -> Tensor:
        if all(grid[d] for d in dimensions):
            return leaf
        return leaf.new_zeros([larger[d] for d in dimensions] + list(leaf.shape[len(dimensions) :]))

    every = list(range(len(grid)))
    sides = []
    for d, of in enumerate(entering):
        others = [each for each in every if each != d]
        full = [filled(of[i], others) if i in of else None for i in range(len(border))]
        sides.append(pytree.tree_unflatten(full, state_structure))
    if sizes is None:
        batch = border[0].shape[0 if options["flips"] is None else 1]
        sizes = torch.tensor(list(grid), device=border[0].device).expand(batch, -1)
    inputs = pytree.tree_unflatten([filled(leaf, every) for leaf in leaves], structure)
    outputs, final = _run(step, state, inputs, larger, sizes=sizes, sides=sides, blank=False, **options)
    cut = tuple([slice(n) for n in grid])
    across = cut[:along] + cut[along + 1 :]
    return pytree.tree_map(lambda leaf: leaf[cut], outputs), pytree.tree_map(lambda leaf: leaf[across], final)


def _check_grid(
    grid: Sequence[int],
    along: int,
    apart: int | None,
    leaves: list[Any],
    border: list[Any],
    flips: Sequence[Collection[int]] | None,
) -> tuple[int, int | None]:
    """Refuse what does not fit together; the dimensions `along` and `apart` without negative numbers."""
    count = len(grid)
    if not count:
        raise CellError("grid has no dimensions; accepted is at least one size")
    if not -count <= along < count:
        raise CellError(f"along is {along}; accepted is a dimension of the grid, {-count} to {count - 1}")
    along %= count
    if apart is not None:
        if not -count <= apart < count or apart % count == along:
            raise CellError(f"apart is {apart}; accepted is a dimension of the grid other than along, which is {along}")
        apart %= count
    if flips is not None and not (flips and all(0 <= d < count for flip in flips for d in flip)):
        raise CellError(f"flips are {flips!r}; accepted is for each direction a list of dimensions 0 to {count - 1}")
    tail = ["batch"] if flips is None else ["batch", "directions"]
    if not border or any(not isinstance(leaf, Tensor) or leaf.dim() < len(tail) for leaf in border):
        raise CellError(f"the state holds {_shapes(border)}; accepted are tensors [{', '.join(reversed(tail))}, ...]")
    ends = [border[0].shape[0]] if flips is None else [border[0].shape[1], len(flips)]
    wanted = [*grid, *ends]
    shared = [*wanted[:-1], 1]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.dim() < len(wanted):
            raise CellError(
                f"inputs hold {_shapes([leaf])}; accepted are tensors [n_1 to n_{count}, {', '.join(tail)}, ...]"
            )
        accepted = (wanted,) if flips is None else (wanted, shared)
        if not torch.compiler.is_exporting() and list(leaf.shape[: len(wanted)]) not in accepted:
            raise CellError(
                f"an input of the wavefront has shape {list(leaf.shape)}; accepted is {wanted} first, the grid and "
                + " and ".join(tail)
            )
    return along, apart


def _check_sides(
    sides: Sequence[Any] | None, grid: Sequence[int], border: list[Tensor], structure: Any
) -> list[dict[int, Tensor]]:
    """What enters at each side, by the number of the state's tensor."""
    if sides is None:
        return [{} for _ in grid]
    if len(sides) != len(grid):
        raise CellError(f"there are {len(sides)} sides; accepted are {len(grid)}, one for each dimension")
    found: list[dict[int, Tensor]] = []
    for d, side in enumerate(sides):
        given = [None] * len(border) if side is None else pytree.tree_leaves(side)
        if len(given) != len(border):
            raise CellError(f"side {d} holds {len(given)} tensors; accepted is a state of {len(border)}, {structure}")
        found.append({i: leaf for i, leaf in enumerate(given) if leaf is not None})
        for i, leaf in found[-1].items():
            rank = len(grid) - 1 + border[i].dim()
            others = [n for other, n in enumerate(grid) if other != d]
            bad = leaf.dim() != rank or leaf.dtype != border[i].dtype
            if bad or (not torch.compiler.is_exporting() and list(leaf.shape[: len(others)]) != others):
                raise CellError(
                    f"side {d} holds {_shapes([leaf])} of {leaf.dtype}; accepted are {rank} axes, the sizes of the "
                    f"other dimensions first, of {border[i].dtype}"
                )
    return found


def _check_state(new: Any, old: list[Tensor], structure: Any) -> list[Tensor]:
    """The tensors of a new state, if they are like the old ones, which are to take their place in some slots."""
    leaves, got = pytree.tree_flatten(new)
    if got != structure:
        raise CellError(f"the step's new state is {got}; accepted is what the state is, {structure}")
    if not torch.compiler.is_exporting() and any(a.shape != b.shape for a, b in zip(leaves, old, strict=True)):
        raise CellError(f"the step's new state holds {_shapes(leaves)}; accepted is {_shapes(old)}")
    return leaves


def _shapes(leaves: list[Any]) -> str:
    return ", ".join(str(list(map(str, x.shape))) if isinstance(x, Tensor) else type(x).__name__ for x in leaves)
