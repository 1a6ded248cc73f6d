"""torch's fused kernels for RNN, LSTM and GRU, with lengths that may be 0 and padding that is never read."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Kernel", "run_fused"]

Kernel = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]


def run_fused(
    kernel: Kernel,
    input: Tensor,
    state: tuple[Tensor, ...],
    weights: list[Tensor],
    lengths: Tensor | None,
    *,
    bias: bool,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run stacked layers with the kernel that torch.nn uses.

    Args:
        kernel: which one.
        input: [time, batch, features], with at least one step and one sequence.
        state: the initial state's tensors, [layers * directions, batch, features] each.
        weights: the flat list of torch.nn: for each layer and direction weight_ih, weight_hh, the two biases if
            `bias`, and weight_hr if the LSTM is projected.
        lengths: int64 [batch], 0 to the size of the time axis; None means the whole axis.
        bias: whether `weights` hold biases.
        num_layers: stacked layers.
        bidirectional: whether each layer has two directions.
        dropout: probability, between layers, in training only.
        training: whether dropout acts.

    Returns:
        The output [time, batch, directions * features], 0 in the padding, and the final state's tensors.
    """
    run = _kernel(kernel, state)
    hx: Tensor | tuple[Tensor, ...] = state if kernel == "lstm" else state[0]
    options = (bias, num_layers, dropout, training, bidirectional)
    steps = input.shape[0]
    if lengths is None or bool((lengths == steps).all()):
        output, *final = run(input, hx, weights, *options, False)
        return output, tuple(final)
    # torch packs no sequence of length 0: such rows run one step on zeros, and what they give is dropped.
    running = (lengths > 0).unsqueeze(-1)
    input = torch.where(running, input, 0.0)
    descending, order = lengths.clamp(min=1).sort(descending=True)
    back = order.argsort()
    sorted_state = tuple(tensor.index_select(1, order) for tensor in state)
    # What torch.nn.utils.rnn calls: an exporter puts its own in the place of those.
    data, batch_sizes = torch._VF._pack_padded_sequence(input.index_select(1, order), descending.cpu(), False)
    data, *final = run(data, batch_sizes, sorted_state if kernel == "lstm" else sorted_state[0], weights, *options)
    output, _ = torch._VF._pad_packed_sequence(data, batch_sizes, False, 0.0, steps)
    return (
        torch.where(running, output.index_select(1, back), 0.0),
        tuple(torch.where(running, new.index_select(1, back), old) for new, old in zip(final, state, strict=True)),
    )


def _kernel(kernel: Kernel, state: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Torch's function for a kernel."""
    run: Callable[..., Any] = getattr(torch._VF, kernel)
    if kernel != "lstm" or state[0].shape[-1] == state[1].shape[-1]:
        return run

    def projected(*arguments: Any) -> Any:
        # oneDNN has no projection, and torch warns of that at every first use unless it is not to try.
        set_flags: Callable[..., Any] = torch.backends.mkldnn.set_flags
        before = set_flags(_enabled=False, _fp32_precision=None)
        try:
            return run(*arguments)
        finally:
            set_flags(_enabled=before[0], _fp32_precision=None)

    return projected
