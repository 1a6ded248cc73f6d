"""The part of SRU that is not a matrix product, as it runs in eager mode: one compiled loop, or a recurrence.

For each lane, with u0, u1, u2 = W x, W_f x, W_r x (Lei et al. 2018, arXiv 1709.02755, version 2):

    f = s(u1 + v_f * c' + b_f)        r = s(u2 + v_r * c' + b_r)        c' the previous c
    c = f * c' + (1 - f) * u0
    h = r * (mask_g * g(c) - mask_s * skip) + skip

Version 1 has v_f = v_r = 0. The masks are dropout's, and 1 without it.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .recurrence import recurrence

__all__ = ["ACTIVATIONS", "Masks", "activate", "run_elementwise", "run_with_recurrence", "sru_step"]

ACTIVATIONS = ("identity", "tanh", "relu")
KERNEL_DTYPES = (torch.float32, torch.float64)

# Starting a thread costs about 0.1 ms, one lane's step 3 ns: below so many values of u it would not pay.
VALUES_PER_THREAD = 3 * 2**16
# Fewer adjacent lanes would leave the SIMD loops little more than their rest.
LANES_PER_THREAD = 32


class Masks(NamedTuple):
    """Dropout of one layer.

    Attributes:
        g: factor of g(c), [batch, features].
        s: factor of the skip inside the reset's bracket, [batch, features].
    """

    g: Tensor
    s: Tensor


def run_elementwise(
    u: Tensor,
    skip: Tensor | None,
    vectors: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    *,
    directions: int,
    activation: str,
    masks: Masks | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of one layer, in the compiled loop where numba, the device and the dtype allow it.

    Args:
        u: [T, B, 3, O], blocks candidate, forget, reset; O = directions * H, forward lanes first.
        skip: [T, B, O], or None for no skip term.
        vectors: [4, O]: v_f, v_r, b_f, b_r.
        c0: the initial state [B, O].
        lengths: int64 [B] without negatives, or None for the whole time axis.
        directions: 1 or 2.
        activation: g: 'identity', 'tanh' or 'relu'.
        masks: dropout, or None for none.

    Returns:
        h [T, B, O], 0 in the padding, and the final state [B, O].
    """
    tensors = (u, vectors, c0) if skip is None else (u, vectors, c0, skip)
    compiled = all(t.device.type == "cpu" and t.dtype == u.dtype and t.dtype in KERNEL_DTYPES for t in tensors)
    if not compiled or not numba_installed():
        return run_with_recurrence(
            u, skip, vectors, c0, lengths, directions=directions, activation=activation, masks=masks
        )
    if lengths is None:
        lengths = torch.full((u.shape[1],), u.shape[0])
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _Compiled.apply)
    return apply(u, skip, vectors, c0, lengths, directions, activation, masks)


def run_with_recurrence(
    u: Tensor,
    skip: Tensor | None,
    vectors: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    *,
    directions: int,
    activation: str,
    masks: Masks | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `run_elementwise` in torch's operators: on any device, in any dtype, differentiable twice."""
    hidden = u.shape[-1] // directions
    outputs, finals = [], []
    for d in range(directions):
        lanes = slice(d * hidden, (d + 1) * hidden)
        step = functools.partial(
            sru_step, vectors[:, lanes], activation, None if masks is None else Masks(*(m[:, lanes] for m in masks))
        )
        inputs = {"u": u[..., lanes]} if skip is None else {"u": u[..., lanes], "skip": skip[..., lanes]}
        h, final = recurrence(step, c0[:, lanes], inputs, lengths=lengths, reverse=d == 1)
        outputs.append(h)
        finals.append(final)
    return torch.cat(outputs, -1), torch.cat(finals, -1)


def activate(c: Tensor, activation: str) -> Tensor:
    """g(c)."""
    if activation == "identity":
        return c
    return torch.tanh(c) if activation == "tanh" else torch.relu(c)


@functools.cache
def numba_installed() -> bool:
    """Whether the compiled loop can be had (extra `train`)."""
    return importlib.util.find_spec("numba") is not None


def sru_step(
    vectors: Tensor, activation: str, masks: Masks | None, c: Tensor, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """One step: `(c, inputs) -> (c, h)` with inputs u [B, 3, O] and, where there is a skip term, skip [B, O]."""
    v_f, v_r, b_f, b_r = vectors.unbind()
    u0, u1, u2 = inputs["u"].unbind(1)
    f = torch.sigmoid(u1 + v_f * c + b_f)
    r = torch.sigmoid(u2 + v_r * c + b_r)
    c = f * c + (1 - f) * u0
    g = activate(c, activation)
    if masks is not None:
        g = masks.g * g
    if "skip" not in inputs:
        return c, r * g
    skip = inputs["skip"]
    return c, r * (g - (skip if masks is None else masks.s * skip)) + skip


@functools.cache
def _kernel() -> ModuleType:
    # Imported at the first call: numba takes longer to import than all cells together.
    from . import sru_kernel

    return sru_kernel


class _Compiled(torch.autograd.Function):
    """The compiled loop and its gradient; the gradient's own gradient goes through `run_with_recurrence`."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        skip: Tensor | None,
        vectors: Tensor,
        c0: Tensor,
        lengths: Tensor,
        directions: int,
        activation: str,
        masks: Masks | None,
    ) -> tuple[Tensor, Tensor]:
        arguments = _arguments(u, skip, vectors, c0, lengths, directions, activation, masks)
        c, h, final = (np.empty_like(arguments[i]) for i in (1, 1, 3))
        _over_lanes(_kernel().forward, *arguments, c, h, final)
        ctx.save_for_backward(u, skip, vectors, c0, lengths, torch.from_numpy(c), *(masks or ()))
        ctx.directions, ctx.activation = directions, activation
        return torch.from_numpy(h), torch.from_numpy(final)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, vectors, c0, lengths, c, *masked = ctx.saved_tensors
        masks = Masks(*masked) if masked else None
        needed = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            # create_graph=True: someone will differentiate this gradient.
            results = run_with_recurrence(
                u, skip, vectors, c0, lengths, directions=ctx.directions, activation=ctx.activation, masks=masks
            )
            wanted = [tensor for tensor, is_needed in zip((u, skip, vectors, c0), needed, strict=True) if is_needed]
            found = iter(torch.autograd.grad(results, wanted, (grad_h, grad_final), create_graph=True))
            return *(next(found) if is_needed else None for is_needed in needed), None, None, None, None
        arguments = _arguments(u, skip, vectors, c0, lengths, ctx.directions, ctx.activation, masks)
        grad_u, grad_skip = np.empty_like(arguments[0]), np.empty_like(arguments[1])
        grad_vectors, grad_c0 = np.zeros_like(arguments[2]), grad_final.numpy().copy()
        gradients = (grad_u, grad_skip, grad_vectors, grad_c0)
        _over_lanes(_kernel().backward, *arguments, c.numpy(), grad_h.contiguous().numpy(), *gradients)
        tensors = (torch.from_numpy(gradient) for gradient in gradients)
        return *(tensor if is_needed else None for tensor, is_needed in zip(tensors, needed, strict=True)), *[None] * 4


def _arguments(
    u: Tensor,
    skip: Tensor | None,
    vectors: Tensor,
    c0: Tensor,
    lengths: Tensor,
    directions: int,
    activation: str,
    masks: Masks | None,
) -> tuple[Any, ...]:
    """What both loops begin with, as contiguous arrays: no skip term is one of zeros, no mask one of ones."""
    tensors = (
        u,
        u.new_zeros((u.shape[0], *c0.shape)) if skip is None else skip,
        vectors,
        c0,
        *(masks or (torch.ones_like(c0), torch.ones_like(c0))),
        lengths,
    )
    arrays = (tensor.detach().contiguous().numpy() for tensor in tensors)
    return *arrays, directions, ACTIVATIONS.index(activation)


def _over_lanes(loop: Callable[..., None], u: np.ndarray[Any, Any], *arguments: Any) -> None:
    """Run a loop over all lanes, split among torch's number of threads where there is work enough."""
    hidden = u.shape[-1] // int(arguments[6])
    parts = min(torch.get_num_threads(), hidden // LANES_PER_THREAD, u.size // VALUES_PER_THREAD)
    if parts < 2:
        loop(u, *arguments, 0, hidden)
        return
    edges = [hidden * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts - 1) as pool:
        others = [pool.submit(loop, u, *arguments, *pair) for pair in itertools.pairwise(edges[1:])]
        loop(u, *arguments, 0, edges[1])
    for other in others:
        other.result()
