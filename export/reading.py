"""From what a forward called at several sizes to the rules that it follows at any: loops found, arguments explained."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from cellport.manifest import TIME

from .affine import Number
from .explaining import At, Rules, Runs
from .hoisting import key
from .rules import Call, Loop, Program
from .traces import NotALoop, Trace

__all__ = ["programs"]

_COUNTS = (0, -1, 1, -2)
"""How many more times than there are steps a loop may run, in the order in which they are tried."""


def programs(traces: Sequence[Trace], sizes: Mapping[str, tuple[int, int]]) -> Iterator[Program]:
    """The programs that explain what a module called.

    Args:
        traces: what it called at several sizes.
        sizes: for each axis name the position of an argument and its axis.

    Raises:
        NotALoop: there is none; the message names what cannot be explained.
    """
    reader = _Reader(traces, sizes)
    points = sorted({(trace.sizes[TIME], len(trace.ops)) for trace in traces})
    slopes = {(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points) if b[0] > a[0]}
    if len(slopes) > 1:
        raise NotALoop(
            "the number of calls is not linear in that of steps: steps differ, or hold a loop over the steps"
        )
    yield from reader.read([], [0] * len(traces))
    raise NotALoop(reader.reason)


class _Reader:
    def __init__(self, traces: Sequence[Trace], sizes: Mapping[str, tuple[int, int]]) -> None:
        self._traces, self._sizes = traces, sizes
        self._keys = [[key(op) for op in trace.ops] for trace in traces]
        self._times = [trace.sizes[TIME] for trace in traces]
        self._runs = Runs(traces, [{} for _ in traces])
        self.reason = "no group of calls is repeated once a step"
        self._furthest = -1

    def read(self, parts: list[Call | Loop], starts: list[int]) -> Iterator[Program]:
        """The programs that begin with `parts`; the runs go on at `starts`."""
        left = [len(keys) - start for keys, start in zip(self._keys, starts, strict=True)]
        rest = [keys[start:] for keys, start in zip(self._keys, starts, strict=True)]
        if all(each == rest[0] for each in rest):
            yield from self._last(parts, starts, left[0])
            return
        for before, body, extra in self._places(rest):
            try:
                made, after = self._plain(parts, starts, before)
                more, after = self._loop(made, after, body, extra)
            except NotALoop as error:
                self._fail(starts[0] + before, error)
                continue
            yield from self.read(more, after)

    def _fail(self, place: int, error: NotALoop) -> None:
        if place > self._furthest:
            self._furthest, self.reason = place, str(error)

    def _places(self, keys: list[list[str]]) -> Iterator[tuple[int, int, int]]:
        """Where a group of calls may begin, how long it is, and how many more times than steps it runs."""
        longest = (
            min(range(len(keys)), key=lambda run: self._times[run]),
            max(range(len(keys)), key=lambda run: self._times[run]),
        )
        small, large = (keys[run] for run in longest)
        growth = (len(large) - len(small)) // (self._times[longest[1]] - self._times[longest[0]])
        for extra in _COUNTS:
            for before in range(len(small)):
                if before and len({each[before - 1] for each in keys}) > 1:
                    break
                for body in range(1, growth + 1):
                    if small[before : before + body] == small[before + body : before + 2 * body] and all(
                        self._repeats(each, before, body, time + extra)
                        for each, time in zip(keys, self._times, strict=True)
                    ):
                        yield before, body, extra

    @staticmethod
    def _repeats(keys: list[str], before: int, body: int, count: int) -> bool:
        end = before + body * count
        return end <= len(keys) and keys[before + body : end] == keys[before : end - body]

    def _plain(self, parts: list[Call | Loop], starts: list[int], count: int) -> tuple[list[Call | Loop], list[int]]:
        parts = list(parts)
        for place in range(count):
            indices = [start + place for start in starts]
            ops = [trace.ops[index] for trace, index in zip(self._traces, indices, strict=True)]
            rules = Rules(self._runs, parts, None, ops[0])
            at: list[At] = [(run, None) for run in range(len(ops))]
            parts.append(rules.call(ops, at))
            for where, index in zip(self._runs.where, indices, strict=True):
                where[index] = (None, None, len(parts) - 1)
        return parts, [start + count for start in starts]

    def _loop(
        self, parts: list[Call | Loop], starts: list[int], length: int, extra: int
    ) -> tuple[list[Call | Loop], list[int]]:
        count = Number(tuple(sorted({(): extra, (TIME,): 1}.items())) if extra else (((TIME,), 1),))
        loop = Loop(count)
        number = len(parts)
        parts = [*parts, loop]
        counts = [time + extra for time in self._times]
        for where, start, times in zip(self._runs.where, starts, counts, strict=True):
            for step in range(times):
                for place in range(length):
                    where[start + step * length + place] = (number, step, place)
        at: list[At] = [(run, step) for run, times in enumerate(counts) for step in range(times)]
        for place in range(length):
            ops = [self._traces[run].ops[starts[run] + (step or 0) * length + place] for run, step in at]
            rules = Rules(self._runs, parts, number, ops[0])
            loop.body.append(None if rules.fills(place, ops, at) else rules.call(ops, at))
        return parts, [start + length * times for start, times in zip(starts, counts, strict=True)]

    def _last(self, parts: list[Call | Loop], starts: list[int], count: int) -> Iterator[Program]:
        try:
            made, _ = self._plain(parts, starts, count)
            first = self._traces[0]
            if any(str(trace.structure) != str(first.structure) for trace in self._traces):
                raise NotALoop("what forward returns has as many tensors as there are steps")
            rules = Rules(self._runs, made, None, None)
            at: list[At] = [(run, None) for run in range(len(self._traces))]
            columns = list(zip(*(trace.results for trace in self._traces), strict=True))
            results = [rules.rule(list(column), at) for column in columns]
        except NotALoop as error:
            self._fail(starts[0] + count, error)
            return
        yield Program(made, results, first.structure, self._sizes, first.held)
