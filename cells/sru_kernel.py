"""SRU's elementwise recurrence as fused loops, compiled by numba: forward, and the gradients of it.

Importing this module imports numba (extra `train`). The innermost loops run over adjacent lanes and hold nothing but
multiplications, additions, divisions and selections, so that LLVM turns them into SIMD code; a call to the C library's
`exp` would stop it, hence the polynomial one for float32.

Shapes, with O = directions * H: u [T, B, 3, O], blocks candidate, forget, reset; skip, c, h [T, B, O];
vectors [4, O] = v_f, v_r, b_f, b_r; c0, mask_g, mask_s [B, O]; lengths int64 [B]. A call does the lanes
`first_j` to `last_j` of each direction and writes nothing else: calls on different lanes may run at the same time.
"""

# numba infers the types of what it compiles; Python's hints are not read.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

__all__ = ["backward", "forward"]

IDENTITY, TANH, RELU = 0, 1, 2

# exp for float32 (Cephes expf): e^x = 2^n e^r with |r| <= ln(2)/2, within 2 units in the last place.
_LOWEST = np.float32(-87.3)
_HIGHEST = np.float32(88.0)
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_E0 = np.float32(1.0)
_E2 = np.float32(5.0000001201e-1)
_E3 = np.float32(1.6666665459e-1)
_E4 = np.float32(4.1665795894e-2)
_E5 = np.float32(8.3334519073e-3)
_E6 = np.float32(1.3981999507e-3)
_E7 = np.float32(1.9875691500e-4)
_HALF = np.float32(0.5)
_BIAS = np.int32(127)
_MANTISSA = np.int32(23)

# tanh for float32 near 0, where the form with exp would lose its relative precision.
_NEAR_ZERO = np.float32(0.3)
_TWO = np.float32(2.0)
_T3 = np.float32(-1 / 3)
_T5 = np.float32(2 / 15)
_T7 = np.float32(-17 / 315)
_T9 = np.float32(62 / 2835)


@numba.njit(inline="always")
def _exp_float32(x):
    # NaN fails both comparisons and stays.
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _E7 * r + _E6
    p = p * r + _E5
    p = p * r + _E4
    p = p * r + _E3
    p = p * r + _E2
    p = p * r * r + r + _E0
    return p * np.int32((np.int32(n) + _BIAS) << _MANTISSA).view(np.float32)


@numba.njit(inline="always")
def _tanh_float32(x):
    square = x * x
    near = x + x * square * (_T3 + square * (_T5 + square * (_T7 + square * _T9)))
    far = _E0 - _TWO / (_exp_float32(_TWO * x) + _E0)
    return near if abs(x) < _NEAR_ZERO else far


def _sigmoid(x):
    raise NotImplementedError("compiled code only")


def _tanh(x):
    raise NotImplementedError("compiled code only")


@overload(_sigmoid)
def _sigmoid_of(x):
    if x == numba.float32:
        return lambda x: _E0 / (_E0 + _exp_float32(-x))
    return lambda x: 1.0 / (1.0 + math.exp(-x))


@overload(_tanh)
def _tanh_of(x):
    if x == numba.float32:
        return lambda x: _tanh_float32(x)
    return lambda x: math.tanh(x)


def _compiled(function):
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that numba could keep a cache in: compile in every process
        return numba.njit(**options)(function)


@_compiled
def forward(u, skip, vectors, c0, mask_g, mask_s, lengths, directions, activation, c, h, final, first_j, last_j):
    """Fill c, h [T, B, O] (0 in the padding) and final [B, O]; equations in `sru_elementwise`."""
    steps = u.shape[0]
    hidden = u.shape[3] // directions
    count = last_j - first_j
    one = u.dtype.type(1)
    zero = u.dtype.type(0)
    reset = np.empty(count, u.dtype)
    for d in range(directions):
        low = d * hidden + first_j
        high = d * hidden + last_j
        v_f, v_r, b_f, b_r = vectors[0, low:high], vectors[1, low:high], vectors[2, low:high], vectors[3, low:high]
        for b in range(u.shape[1]):
            final[b, low:high] = c0[b, low:high]
        for s in range(steps):
            for b in range(u.shape[1]):
                if s >= lengths[b]:
                    c[s, b, low:high] = zero
                    h[s, b, low:high] = zero
                    continue
                t = s if d == 0 else lengths[b] - 1 - s
                u0, u1, u2 = u[t, b, 0, low:high], u[t, b, 1, low:high], u[t, b, 2, low:high]
                state, new, out = final[b, low:high], c[t, b, low:high], h[t, b, low:high]
                skipped, keep_g, keep_s = skip[t, b, low:high], mask_g[b, low:high], mask_s[b, low:high]
                for j in range(count):
                    old = state[j]
                    f = _sigmoid(u1[j] + v_f[j] * old + b_f[j])
                    reset[j] = _sigmoid(u2[j] + v_r[j] * old + b_r[j])
                    value = f * old + (one - f) * u0[j]
                    state[j] = value
                    new[j] = value
                    out[j] = value
                if activation == TANH:
                    for j in range(count):
                        out[j] = _tanh(new[j])
                elif activation == RELU:
                    for j in range(count):
                        out[j] = zero if new[j] < zero else new[j]
                for j in range(count):
                    x = skipped[j]
                    out[j] = reset[j] * (keep_g[j] * out[j] - keep_s[j] * x) + x


@_compiled
def backward(
    u, skip, vectors, c0, mask_g, mask_s, lengths, directions, activation, c, grad_h,
    grad_u, grad_skip, grad_vectors, grad_c0, first_j, last_j,
):  # fmt: skip
    """Fill grad_u, grad_skip (0 in the padding); add to grad_vectors [4, O] and to grad_c0 [B, O].

    grad_c0 comes in as the gradient of the final state. Gates are computed anew from u and c, which costs less than
    to keep them in memory.
    """
    steps = u.shape[0]
    hidden = u.shape[3] // directions
    count = last_j - first_j
    one = u.dtype.type(1)
    zero = u.dtype.type(0)
    forget = np.empty(count, u.dtype)
    reset = np.empty(count, u.dtype)
    active = np.empty(count, u.dtype)
    slope = np.empty(count, u.dtype)
    for d in range(directions):
        low = d * hidden + first_j
        high = d * hidden + last_j
        v_f, v_r, b_f, b_r = vectors[0, low:high], vectors[1, low:high], vectors[2, low:high], vectors[3, low:high]
        to_v_f, to_v_r = grad_vectors[0, low:high], grad_vectors[1, low:high]
        to_b_f, to_b_r = grad_vectors[2, low:high], grad_vectors[3, low:high]
        for s in range(steps - 1, -1, -1):
            for b in range(u.shape[1]):
                if s >= lengths[b]:
                    grad_u[s, b, :, low:high] = zero
                    grad_skip[s, b, low:high] = zero
                    continue
                t = s if d == 0 else lengths[b] - 1 - s
                before = t - 1 if d == 0 else t + 1
                old = c0[b, low:high] if s == 0 else c[before, b, low:high]
                new = c[t, b, low:high]
                u0, u1, u2 = u[t, b, 0, low:high], u[t, b, 1, low:high], u[t, b, 2, low:high]
                to_u0, to_u1, to_u2 = grad_u[t, b, 0, low:high], grad_u[t, b, 1, low:high], grad_u[t, b, 2, low:high]
                skipped, keep_g, keep_s = skip[t, b, low:high], mask_g[b, low:high], mask_s[b, low:high]
                to_out, to_skip, to_c = grad_h[t, b, low:high], grad_skip[t, b, low:high], grad_c0[b, low:high]
                for j in range(count):
                    active[j] = new[j]
                    slope[j] = one
                if activation == TANH:
                    for j in range(count):
                        active[j] = _tanh(new[j])
                        slope[j] = one - active[j] * active[j]
                elif activation == RELU:
                    for j in range(count):
                        active[j] = zero if new[j] < zero else new[j]
                        slope[j] = one if new[j] > zero else zero
                # Three loops and not one: LLVM gives up on SIMD where it must check too many arrays for overlap.
                for j in range(count):
                    forget[j] = _sigmoid(u1[j] + v_f[j] * old[j] + b_f[j])
                    reset[j] = _sigmoid(u2[j] + v_r[j] * old[j] + b_r[j])
                for j in range(count):
                    f, r, g_h = forget[j], reset[j], to_out[j]
                    g_r = g_h * (keep_g[j] * active[j] - keep_s[j] * skipped[j]) * r * (one - r)
                    g_c = g_h * keep_g[j] * r * slope[j] + to_c[j]
                    g_f = g_c * (old[j] - u0[j]) * f * (one - f)
                    to_c[j] = g_c * f + g_f * v_f[j] + g_r * v_r[j]
                    to_u0[j] = g_c * (one - f)
                    to_u1[j] = g_f
                    to_u2[j] = g_r
                    to_skip[j] = g_h * (one - r * keep_s[j])
                for j in range(count):
                    to_v_f[j] += to_u1[j] * old[j]
                    to_v_r[j] += to_u2[j] * old[j]
                    to_b_f[j] += to_u1[j]
                    to_b_r[j] += to_u2[j]
