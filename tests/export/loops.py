"""Python loops over time, in the ways in which people write them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cellport.cells import GRUCell


class Looped(nn.Module):
    """One way of writing the loop."""

    def __init__(self, how: Callable[["Looped", Tensor], Any]) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)
        self.upper, self.back, self.own = nn.GRUCell(5, 5), nn.GRUCell(4, 5), GRUCell(4, 5)
        self.before, self.after, self.drop = nn.Linear(4, 4), nn.Linear(5, 3), nn.Dropout(0.1)
        self.layer = nn.LSTM(4, 5, 2, batch_first=True)
        self.z, self.n = nn.Linear(4, 5), nn.Linear(4, 5)
        self.places, self.ids = nn.Embedding(200, 4), nn.Embedding(3, 4)
        self.start = nn.Parameter(torch.randn(1, 5))
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def plain(m: Looped, x: Tensor) -> Any:
    h, c = x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        h, c = m.lstm(m.before(x[:, t]), (h, c))
        h = m.drop(h)
        rows.append(m.after(h))
    return torch.stack(rows, 1), h, c


def slices(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.shape[0], 5)
    rows = []
    for t in range(x.shape[1]):
        h = m.gru(x[:, t, :], h)
        rows.append(h.unsqueeze(1))
    return torch.cat(rows, dim=1)


def unbound(m: Looped, x: Tensor) -> Any:
    h = None
    rows = torch.empty(x.size(0), x.size(1), 5)
    for t, row in enumerate(x.unbind(1)):
        h = m.rnn(row, h)
        rows[:, t] = h
    return rows


def last(m: Looped, x: Tensor) -> Any:
    h = m.start.expand(x.size(0), -1)
    for row in x.transpose(0, 1):
        h = m.gru(row, h)
    return m.after(h)


def mean(m: Looped, x: Tensor) -> Any:
    h = m.start.repeat(x.size(0), 1)
    total = torch.zeros_like(h)
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        total = total + h
    return total / x.size(1)


def stacked(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        g = m.upper(h, g)
        rows.append(g)
    return torch.stack(rows).transpose(0, 1)


def one_after_another(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    lower, upper = [], []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        lower.append(h)
    for row in lower:
        g = m.upper(row, g)
        upper.append(g)
    return torch.stack(upper, 1)


def both_ways(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    forward, backward = [], []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        forward.append(h)
    for t in reversed(range(x.size(1))):
        g = m.back(x[:, t], g)
        backward.append(g)
    return torch.cat([torch.stack(forward, 1), torch.stack(backward[::-1], 1)], 2)


def of_ones_own(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        z = torch.sigmoid(m.z(x[:, t]))
        h = (1 - z) * h + z * torch.tanh(m.n(x[:, t]))
        rows.append(h)
    return torch.stack(rows, dim=-2)


def library(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        _, h = m.own(x[:, t], h)
        rows.append(h)
    return {"all": torch.stack(rows, 1), "last": rows[-1]}


def reshaped(m: Looped, x: Tensor) -> Any:
    batch, steps, _ = x.shape
    flat = m.before(x.reshape(batch * steps, 4)).view(batch, steps, 4)
    h = x.new_zeros(batch, 5)
    rows = []
    for t in range(steps):
        h = m.gru(flat[:, t], h)
        rows.append(h)
    return m.after(torch.stack(rows, 1).view(batch * steps, 5)).view(batch, steps, 3)


def layer_by_steps(m: Looped, x: Tensor) -> Any:
    state, rows = None, []
    for t in range(x.size(1)):
        y, state = m.layer(x[:, t : t + 1], state)
        rows.append(y)
    return torch.cat(rows, 1)


def time_first(m: Looped, x: Tensor) -> Any:
    x = x.transpose(0, 1)
    h = torch.zeros(x.size(1), 5)
    rows = []
    for t in range(x.size(0)):
        h = m.gru(x[t], h)
        rows.append(h)
    return torch.stack(rows)


def from_the_second(m: Looped, x: Tensor) -> Any:
    h = m.gru(x[:, 0])
    rows = [h]
    for t in range(1, x.size(1)):
        h = m.gru(x[:, t], h)
        rows.append(h)
    return torch.stack(rows, 1), rows[-1]


def two_back(m: Looped, x: Tensor) -> Any:
    rows = [x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)]
    for t in range(x.size(1)):
        rows.append(m.gru(x[:, t], rows[t]))
    return torch.stack(rows[2:], 1)


def numbered(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        h = m.gru(x[:, t] + m.places(torch.tensor(t)), h) / (t + 1)
    return h


def before_the_step(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        rows.append(m.after(h))
        h = m.gru(x[:, t], h)
    return torch.stack(rows, 1)


def kept_from_the_start(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    rows = [h]
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        rows.append(h)
    return torch.stack(rows[:-1], 1), sum(rows) / len(rows)


def maximum(m: Looped, x: Tensor) -> Any:
    h, best = x.new_zeros(x.size(0), 5), None
    for row in x.unbind(1):
        h = m.gru(row, h)
        best = h if best is None else torch.maximum(best, h)
    return best


def differences(m: Looped, x: Tensor) -> Any:
    h, before = x.new_zeros(x.size(0), 5), torch.zeros_like(x[:, 0])
    for t in range(x.size(1)):
        h, before = m.gru(x[:, t] - before, h), x[:, t]
    return h


def fed_back(m: Looped, x: Tensor) -> Any:
    h, scores = x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 3)
    rows = []
    for t in range(x.size(1)):
        h = m.gru(x[:, t] + m.ids(scores.argmax(-1)), h)
        scores = m.after(h)
        rows.append(scores)
    return torch.stack(rows, 1)


def attending(m: Looped, x: Tensor) -> Any:
    encoded, _ = m.layer(x)
    h = x.new_zeros(x.size(0), 5)
    rows = []
    for _ in range(x.size(1)):
        weights = torch.softmax((encoded * h.unsqueeze(1)).sum(-1), 1)
        h = m.upper((weights.unsqueeze(2) * encoded).sum(1), h)
        rows.append(h)
    return torch.stack(rows, 1)


def masked(m: Looped, x: Tensor) -> Any:
    h, done = x.new_zeros(x.size(0), 5), torch.zeros(x.size(0), dtype=torch.bool)
    seen = x.sum(-1) > 0
    for t in range(x.size(1)):
        done = done | (x[:, t, 0] > 1)
        h = torch.where((seen[:, t] & ~done).unsqueeze(1), m.gru(x[:, t], h), h)
    return h, done


def in_place(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        h = h * 0.9
        h += m.gru(x[:, t], h)
        h.tanh_()
        rows.append(h[:, None])
    return torch.cat(rows, 1)


def filled_from_the_second(m: Looped, x: Tensor) -> Any:
    h = m.gru(x[:, 0])
    rows = torch.zeros(x.size(0), x.size(1), 5)
    rows[:, 0] = h
    for t in range(1, x.size(1)):
        h = m.gru(x[:, t], h)
        rows[:, t, :] = h
    return rows


def layers_in_one_loop(m: Looped, x: Tensor) -> Any:
    states = [x.new_zeros(x.size(0), 5) for _ in range(2)]
    rows = []
    for t in range(x.size(1)):
        row = x[:, t]
        for number, cell in enumerate((m.gru, m.upper)):
            states[number] = row = cell(row, states[number])
        rows.append(row)
    return torch.stack(rows, 1), torch.stack(states)


def by_hand(m: Looped, x: Tensor) -> Any:
    h, c = torch.zeros(2, x.size(0), 5).unbind(0)
    for t in range(x.size(1)):
        gates = x[:, t] @ m.lstm.weight_ih.t() + h @ m.lstm.weight_hh.t() + m.lstm.bias_ih
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h, c


def smoothed(m: Looped, x: Tensor) -> Any:
    y = x[:, 0]
    rows = [y]
    for t in range(1, x.size(1)):
        y = 0.9 * y + 0.1 * x[:, t]
        rows.append(y)
    return m.before(torch.stack(rows, 1))


def both_ways_at_once(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    forward, backward = [], []
    for t in range(x.size(1)):
        h, g = m.gru(x[:, t], h), m.back(x[:, -1 - t], g)
        forward.append(h)
        backward.insert(0, g)
    return torch.cat([torch.stack(forward, 1), torch.stack(backward, 1)], 2)


def learned_row(m: Looped, x: Tensor) -> Any:
    h = m.start[0]
    for t in range(x.size(1)):
        h = torch.tanh(m.z(x[:, t]) + h)
    return h


WAYS = [
    plain,
    slices,
    unbound,
    last,
    mean,
    stacked,
    one_after_another,
    both_ways,
    of_ones_own,
    library,
    reshaped,
    layer_by_steps,
    time_first,
    from_the_second,
    two_back,
    numbered,
    before_the_step,
    kept_from_the_start,
    maximum,
    differences,
    fed_back,
    attending,
    masked,
    in_place,
    filled_from_the_second,
    layers_in_one_loop,
    by_hand,
    smoothed,
    both_ways_at_once,
    learned_row,
]
