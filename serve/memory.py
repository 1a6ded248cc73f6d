"""Python's garbage collection in a process that does nothing but serve."""

import gc

_THRESHOLDS = 20_000, 20, 20
"""Objects that are more than were there at the last collection before there is another one; and how many collections of
one generation come to one of the next. Python's own are 700, 10 and 10: with 64 requests on their way, a tenth of the
time goes into looking for cycles, of which serving makes next to none."""


def settle() -> None:
    """Take everything that has been loaded out of what is looked through for garbage, and look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
