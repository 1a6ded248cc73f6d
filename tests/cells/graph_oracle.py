"""Section 7 of the specification (shared with no code of the package) as float64 NumPy loops over nodes, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .oracle import s

Array = NDArray[np.float64]
Weights = dict[str, Array]


def sweep(
    w: Weights,
    x: Array,
    neighbours: Sequence[Sequence[int]],
    order: Sequence[int],
    h: Array,
    m: Array,
    gate_states: str,
    output: str,
    halved: bool = False,
) -> tuple[Array, Array]:
    """7.1, one layer: W, U, Un [4H, ...] and b [4H], blocks u, f, c, o."""
    w_u, w_f, w_c, w_o = np.split(w["W"], 4)
    u_u, u_f, u_c, u_o = np.split(w["U"], 4)
    n_u, n_f, n_c, n_o = np.split(w["Un"], 4)
    b_u, b_f, b_c, b_o = np.split(w["b"], 4)
    new_h, new_m = h.copy(), m.copy()
    visited = np.zeros(len(x), bool)
    for i in order:
        mean_h, mean_m = np.zeros_like(h[i]), np.zeros_like(m[i])
        for j in neighbours[i]:
            h_j = new_h[j] if visited[j] else h[j]
            m_j = new_m[j] if visited[j] else m[j]
            gate = s(w_f @ x[i] + n_f @ (h_j if gate_states == "newest" else h[j]) + b_f)
            mean_h += h_j / len(neighbours[i])
            mean_m += gate * m_j / len(neighbours[i])
        u = s(w_u @ x[i] + u_u @ h[i] + n_u @ mean_h + b_u)
        f = s(w_f @ x[i] + u_f @ h[i] + b_f)
        o = s(w_o @ x[i] + u_o @ h[i] + n_o @ mean_h + b_o)
        c = np.tanh(w_c @ x[i] + u_c @ h[i] + n_c @ mean_h + b_c)
        new_m[i] = (mean_m + f * m[i]) * (0.5 if halved else 1) + u * c
        new_h[i] = np.tanh(o * new_m[i]) if output == "tanh_o_m" else o * np.tanh(new_m[i])
        visited[i] = True
    return new_h, new_m


def child_sum(w: Weights, x: Array, children: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """7.2: W, U [4H, ...] and b [4H], blocks i, o, u, f."""
    w_i, w_o, w_u, w_f = np.split(w["W"], 4)
    u_i, u_o, u_u, u_f = np.split(w["U"], 4)
    b_i, b_o, b_u, b_f = np.split(w["b"], 4)
    found: dict[int, tuple[Array, Array]] = {}

    def node(j: int) -> tuple[Array, Array]:
        if j not in found:
            below = [node(k) for k in children[j]]
            h_sum = sum((h for h, _ in below), np.zeros_like(b_i))
            i = s(w_i @ x[j] + u_i @ h_sum + b_i)
            o = s(w_o @ x[j] + u_o @ h_sum + b_o)
            u = np.tanh(w_u @ x[j] + u_u @ h_sum + b_u)
            c = i * u
            for h_k, c_k in below:
                c = c + s(w_f @ x[j] + u_f @ h_k + b_f) * c_k
            found[j] = (o * np.tanh(c), c)
        return found[j]

    pairs = [node(j) for j in range(len(x))]
    return np.array([h for h, _ in pairs]), np.array([c for _, c in pairs])


def n_ary(w: Weights, x: Array, slots: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """7.2: W [4H, I] and b [4H], blocks i, o, u, f; U_l^{i, o, u} and U_kl^f by name; -1 for a missing child."""
    w_i, w_o, w_u, w_f = np.split(w["W"], 4)
    b_i, b_o, b_u, b_f = np.split(w["b"], 4)
    found: dict[int, tuple[Array, Array]] = {}
    arity = len(slots[0])

    def node(j: int) -> tuple[Array, Array]:
        if j not in found:
            below = [node(k) if k >= 0 else (np.zeros_like(b_i), np.zeros_like(b_i)) for k in slots[j]]
            a_i, a_o, a_u = w_i @ x[j] + b_i, w_o @ x[j] + b_o, w_u @ x[j] + b_u
            for each in range(arity):
                a_i = a_i + w[f"U_i_{each}"] @ below[each][0]
                a_o = a_o + w[f"U_o_{each}"] @ below[each][0]
                a_u = a_u + w[f"U_u_{each}"] @ below[each][0]
            c = s(a_i) * np.tanh(a_u)
            for k in range(arity):
                a_f = w_f @ x[j] + b_f
                for each in range(arity):
                    a_f = a_f + w[f"U_f_{k}_{each}"] @ below[each][0]
                c = c + s(a_f) * below[k][1]
            found[j] = (s(a_o) * np.tanh(c), c)
        return found[j]

    pairs = [node(j) for j in range(len(x))]
    return np.array([h for h, _ in pairs]), np.array([c for _, c in pairs])


def dag(w: Weights, x: Array, edges: Sequence[tuple[int, int, int]], back: bool, light: bool) -> tuple[Array, Array]:
    """7.3, one direction: edges (source, target, type), W [4H, I], U [4H, types or type_size, H], b, e [types, E]."""
    w_i, w_o, w_u, w_f = np.split(w["W"], 4)
    u_i, u_o, u_u, u_f = np.split(w["U"], 4)
    b_i, b_o, b_u, b_f = np.split(w["b"], 4)
    h, c = np.zeros((len(x), len(b_i))), np.zeros((len(x), len(b_i)))

    def product(u: Array, kind: int, h_j: Array) -> Array:
        return np.einsum("aeb,e,b->a", u, w["e"][kind], h_j) if light else u[:, kind] @ h_j

    for t in reversed(range(len(x))) if back else range(len(x)):
        a_i, a_o, a_u = w_i @ x[t] + b_i, w_o @ x[t] + b_o, w_u @ x[t] + b_u
        kept = np.zeros_like(b_i)
        for j, target, kind in edges:
            if target != t or (j > t) != back:
                continue
            a_i = a_i + product(u_i, kind, h[j])
            a_o = a_o + product(u_o, kind, h[j])
            a_u = a_u + product(u_u, kind, h[j])
            kept = kept + s(w_f @ x[t] + product(u_f, kind, h[j]) + b_f) * c[j]
        c[t] = s(a_i) * np.tanh(a_u) + kept
        h[t] = s(a_o) * np.tanh(c[t])
    return h, c
