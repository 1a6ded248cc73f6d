"""How short requests are run: by the event loop that takes them, by one worker at a time, or by all workers."""

_WINDOW = 32
_SECONDS = 0.05
"""Requests, and seconds, after which the way may change: in fewer, a rate is mostly chance."""

_WEIGHT = 0.5
"""Weight of the newest window in a way's rate."""

_GAIN = 1.05
"""How many times more requests several runs at a time must get done to be chosen."""

_TRY_SEVERAL = 8
_TRY_ONE = 16
_TRY_ALONE = 16
"""One window in so many tries the other way. The last is for a caller who was alone in the last try of the workers."""


class WayChooser:
    """Measures which way gets more requests done, and takes it.

    A caller who is alone is served by the loop itself, which spares two hand-overs between threads. The loop cannot see
    whether others wait, since it learns of a request only by taking it; so some of the requests go to the workers all
    the same, and where one meets another there, there are more callers than one.

    Of several callers, the workers run the requests. Several short runs at a time take the processors that the loop
    needs to answer and to read, and wait for it and for each other; one at a time has more rows. Which is better hangs
    on the model and on the machine: requests go by turns this way and that, and the rates at which they come tell.

    Attributes:
        several: there are to be several short runs at a time.
        alone: there is one caller, whose requests the loop runs itself.
    """

    def __init__(self) -> None:
        self.several = False
        self.alone = False
        self._lonely = False  # there was one caller when that was last looked at
        self._rates: dict[bool, float] = {}
        self._count = 0
        self._since: float | None = None
        self._windows = 0
        self._met = False  # a request has met another one in this window

    def __repr__(self) -> str:
        told = ", ".join(f"{'several' if way else 'one'}: {rate:.0f}/s" for way, rate in self._rates.items())
        return f"<WayChooser {'alone' if self.alone else 'several' if self.several else 'one'} ({told})>"

    def take(self, now: float, count: int = 1, *, met: bool = True) -> None:
        """Take note of requests that come.

        Args:
            now: this moment.
            count: how many have come.
            met: they have found others, that wait or run, or are several.
        """
        self._met = self._met or met
        if count > 1:
            self._lonely = self.alone = False
        if self._since is None:
            self._since = now
            return
        self._count += count
        if self._count >= _WINDOW and now >= self._since + _SECONDS:
            self._close(self._count / (now - self._since))
            self._count, self._since = 0, now

    def _close(self, rate: float) -> None:
        self._windows += 1
        met, self._met = self._met, False
        if not self.alone:
            self._lonely = not met
            known = self._rates.get(self.several)
            self._rates[self.several] = rate if known is None else known + _WEIGHT * (rate - known)
        if self._lonely:
            self.alone = self._windows % _TRY_ALONE != 0
            return
        self.alone = False
        if len(self._rates) < 2:
            self.several = not self.several
            return
        best = self._rates[True] > _GAIN * self._rates[False]
        self.several = best != (self._windows % (_TRY_ONE if best else _TRY_SEVERAL) == 0)
