"""Whether an event loop had better run a short request itself, or leave it to a worker."""

_WINDOW = 32
"""Requests after which the way may change."""

_WEIGHT = 0.5
"""Weight of the newest window in a way's rate."""

_GAIN = 1.05
"""How many times more requests the workers must get done to be chosen."""

_TRY_WORKERS = 4
_TRY_INLINE = 32
_TRY_ALONE = 16
"""One window in so many tries the other way: the worse mistake is to be looked for more often. The last is for a caller
who was alone in the last try of the workers."""


class WayChooser:
    """Measures which way gets more requests done, and takes it.

    A request that the loop runs itself is spared two hand-overs between threads. But meanwhile the loop takes no other
    request, and those that it would have found waiting cannot share a run: with one caller the first counts, with many
    the second. The loop cannot see who waits, since it learns of a request only by taking it. So requests go by turns
    this way and that, and the rates at which they come tell which is better. Where no request met another one while the
    workers had them, there is one caller, whatever the rates say.
    """

    def __init__(self) -> None:
        self.inline = True
        self._rates: dict[bool, float] = {}
        self._count = 0
        self._since: float | None = None
        self._windows = 0
        self._met = False  # a request has met another one, since the way changed
        self._alone = False

    def __repr__(self) -> str:
        told = ", ".join(f"{'inline' if way else 'workers'}: {rate:.0f}/s" for way, rate in self._rates.items())
        return f"<WayChooser {'inline' if self.inline else 'workers'} ({told})>"

    @property
    def alone(self) -> bool:
        """Whether there was one caller when that was last looked at, whose requests the loop runs itself."""
        return self.inline and self._alone

    def take(self, now: float, count: int = 1, *, met: bool = True) -> bool:
        """Take note of requests that come at `now`; return whether the loop had better run one itself.

        Args:
            now: this moment.
            count: how many have come.
            met: they have found others, that wait or run, or are several.
        """
        self._met = self._met or met
        if count > 1:
            self._alone = False
        if self._since is None:
            self._since = now
            return self.inline
        self._count += count
        if self._count >= _WINDOW and now > self._since:
            self._close(self._count / (now - self._since))
            self._count, self._since = 0, now
        return self.inline

    def _close(self, rate: float) -> None:
        known = self._rates.get(self.inline)
        self._rates[self.inline] = rate if known is None else known + _WEIGHT * (rate - known)
        self._windows += 1
        if not self.inline:
            self._alone = not self._met
        self._met = False
        if len(self._rates) < 2:
            self.inline = not self.inline
            return
        best = self._alone or self._rates[True] * _GAIN >= self._rates[False]
        pause = _TRY_ALONE if self._alone else _TRY_WORKERS if best else _TRY_INLINE
        self.inline = best != (self._windows % pause == 0)
