"""Files beside octavo's arrays: directories that are written whole or not at all, checksums, safetensors."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
_CHUNK = 1 << 22


@contextmanager
def new_directory(target: str | os.PathLike[str], check: Callable[[Path], None]) -> Iterator[Path]:
    """An empty directory to fill, beside `target`, which takes its place when the block ends.

    check(path) raises where an existing target must not be replaced. If the block fails, what it wrote is
    removed and the target is as it was. A crash leaves the target whole, old or new, and may leave a hidden
    directory `.<name>.<random>.tmp` beside it. Where the file system cannot exchange two directories at once,
    a crash between two renames leaves no target, but the old one as `.<name>.<random>.old`.
    """
    path = Path(os.path.realpath(target))
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    draft.mkdir()
    try:
        yield draft
        mode = draft.stat().st_mode & 0o666
        for file in draft.iterdir():
            file.chmod(mode)  # as the umask has it: safetensors lets nobody else read what it wrote
            _flush(file)
        _flush(draft)
        _put(draft, path, check)
        _flush(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # what failed, or what was replaced


def _put(draft: Path, target: Path, check: Callable[[Path], None]) -> None:
    try:
        os.rename(draft, target)  # takes the place of nothing, or of an empty directory
        return
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
    check(target)
    if _exchange(draft, target):
        return
    old = draft.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(draft, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Whether the file system has exchanged the two."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return done == 0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ---- safetensors ----


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("octavo's files need safetensors: pip install 'octavo[files]'") from error
    return safetensors


def save_tensors(tensors: dict[str, Any], path: Path) -> None:
    """Writes contiguous CPU tensors that share no memory. OSError where the disk does not take them."""
    package = _safetensors()
    try:
        package.torch.save_file(tensors, path, metadata={"format": "pt"})  # transformers looks for it
    except package.SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The file, mapped; its tensors stay valid afterwards. ValueError for one that is not safetensors'."""
    package = _safetensors()
    try:
        with package.safe_open(path, framework="pt") as file:
            yield file
    except package.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
