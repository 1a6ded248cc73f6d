"""Settings of the engine and of what it is made of: plain values, which go from one process to another."""

import math
from dataclasses import dataclass, field
from typing import Literal

from .versions import RepositorySettings


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Limits of batching.

    Attributes:
        queue: requests that may wait; a further one is refused.
        queue_bytes: bytes of tensors that may wait; a further request is refused, unless it is the only one.
        rows: rows of one run. A request that has more runs alone.
        cut: run requests of a causal model in chunks, so that others can join and leave in between, and nothing is
            padded that need not be. If not, or if the model cannot be cut, requests run whole.
        padding: how many times larger than the requests' own steps a run of whole requests may be made by padding; so
            that one long request does not make a hundred short ones as long as itself.
        run_seconds: what a chunk may take, if others are to join and leave in between; longer only where the run would
            otherwise be mostly its fixed costs.
        default_priority: of a request that gives none; a smaller number runs first.
    """

    queue: int = 4096
    queue_bytes: int = 2**30
    rows: int = 64
    cut: bool = True
    padding: float = 1.25
    run_seconds: float = 0.02
    default_priority: int = 2

    def __post_init__(self) -> None:
        for name in ("queue", "queue_bytes", "rows", "padding", "default_priority"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 1")
        if not self.run_seconds > 0:
            raise ValueError(f"run_seconds is {self.run_seconds}; accepted: more than 0")


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """Limits on running sequences.

    Attributes:
        maximum: sequences held at once; a further start evicts the one that was used least recently.
        state_bytes: bytes of states held at once, with the same consequence.
        idle_seconds: a sequence without a step for so long is evicted.
        lifetime_seconds: a sequence that started so long ago is evicted, between two of its steps.
        on_restart: what a start of a running id does: ``restart`` drops the old state, as Triton does; ``refuse``
            answers ALREADY_EXISTS.
        remembered: ids of past sequences that are kept, so that a late step is told what happened.
        answer_bytes: size up to which the answer to a numbered step is remembered, for as long as its sequence and its
            id are.
    """

    maximum: int = 10_000
    state_bytes: int = 2**30
    idle_seconds: float = 600.0
    lifetime_seconds: float = math.inf
    on_restart: Literal["restart", "refuse"] = "restart"
    remembered: int = 10_000
    answer_bytes: int = 2**16

    def __post_init__(self) -> None:
        for name in ("maximum", "state_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 1")
        for name in ("idle_seconds", "lifetime_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: more than 0")
        if self.on_restart not in ("restart", "refuse"):
            raise ValueError(f"on_restart is {self.on_restart!r}; accepted: 'restart', 'refuse'")
        for name in ("remembered", "answer_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 0")


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How onnxruntime runs a model.

    Attributes:
        threads: threads of one run; 0 for one a core; None for what an engine measures to get the most done, and
            otherwise one. A recurrent step is mostly too small to be shared out: cores are better used by running
            several batches at a time (docs/decisions/0006-first-batcher.md).
        spin: waiting threads spin instead of sleeping. Faster on cores that have nothing else to do; here they share
            them with the server's event loop.
    """

    threads: int | None = None
    spin: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 0:
            raise ValueError(f"threads is {self.threads}; accepted: at least 0")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine works.

    Attributes:
        batch: limits of batching.
        sequences: limits on running sequences.
        session: how onnxruntime runs a model.
        repository: which versions in a folder are served, and who decides when models come and go.
        workers: how many runs there may be at a time; 0 to measure at the start how many get the most done.
        warm_seconds: how long each model may be run when it is loaded, to learn what a run costs; 0 to guess it.
        inline_seconds: a request to an idle engine that is expected to take no longer than this is run by the thread
            that brings it, which saves two hand-overs between threads; by an event loop only while its caller is
            alone. A model whose runs take no longer may be run once at a time, where that gets more done.
    """

    batch: BatchSettings = field(default_factory=BatchSettings)
    sequences: SequenceSettings = field(default_factory=SequenceSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    repository: RepositorySettings = field(default_factory=RepositorySettings)
    workers: int = 0
    warm_seconds: float = 0.25
    inline_seconds: float = 0.002

    def __post_init__(self) -> None:
        for name in ("workers", "warm_seconds", "inline_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 0")
