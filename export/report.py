"""What an export did."""

from dataclasses import dataclass
from pathlib import Path

from cellport.manifest import Manifest


@dataclass(frozen=True)
class Report:
    """What an export made and what was decided on the way.

    Attributes:
        path: the file.
        bytes: its size, external data included.
        nodes: nodes in the graph, those inside Scan bodies included.
        manifest: the manifest in the file.
        notes: decisions and their reasons, one sentence each.
        seconds: time of the whole export, verification included.
        metric: the task's metric of PyTorch and of the file, if there was a function for it.
    """

    path: Path
    bytes: int
    nodes: int
    manifest: Manifest
    notes: tuple[str, ...]
    seconds: float
    metric: tuple[float, float] | None = None

    def __str__(self) -> str:
        """The report as text."""
        lines = [f"{self.path}: {self.bytes / 2**20:.1f} MiB, {self.nodes} nodes, {self.seconds:.1f} s"]
        lines += [f"  {note}" for note in self.notes]
        verification = self.manifest.verification
        if verification is None:
            lines.append("  not verified")
        else:
            said = "equal to" if self.exact else "measured against"
            lines.append(f"  {said} PyTorch in {verification.cases} cases:")
            if verification.second_looks:
                lines.append(
                    f"    ({verification.second_looks} of them by a second look at what PyTorch's rounding does)"
                )
            for each in verification.outputs:
                errors = f"error {each.onnx_error:.2e} against float64 (PyTorch's own {each.torch_error:.2e})"
                lines.append(f"    {each.name}: {errors}")
        if self.metric is not None:
            lines.append(f"  metric {self.metric[1]:.6g} (PyTorch {self.metric[0]:.6g})")
        return "\n".join(lines)

    @property
    def exact(self) -> bool:
        """Whether the file is held to the rule of equivalence, as it is unless its weights or tables are smaller."""
        return self.manifest.source is None or self.manifest.source.exact
