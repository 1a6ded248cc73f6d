"""Files that appear whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cellport.errors import ExportError

__all__ = ["external_data", "written"]


def external_data(path: Path) -> Path:
    """Where the large tensors of a model file are: beside it."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place to write a model file to, which takes the place of `path` when the block ends well.

    What was there stays as it is until then, and for good if the block raises.

    Yields:
        A path of the same name in a folder beside it.

    Raises:
        ExportError: `path` is a folder, or nothing can be written there.
    """
    if path.is_dir():
        raise ExportError(f"{str(path)!r} is a folder; accepted: the path of the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ExportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    try:
        draft = folder / path.name
        yield draft
        if external_data(draft).exists():
            external_data(draft).replace(external_data(path))
            draft.replace(path)
        else:
            draft.replace(path)
            external_data(path).unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
