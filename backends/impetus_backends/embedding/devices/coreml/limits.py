"""How large a Core ML package may be before Core ML runs it on the CPU without a word.

1 GiB under macOS 27 and 2 GiB before: measured by others on one M2 (xhighhongo41/eeANE 1.6.1), unverified by us.
"""

from __future__ import annotations

from impetus_backends.machine.hardware import version

_FEWER_FROM = (27,)
_GIB = 2**30


def most_bytes(macos: str) -> int:
    """For a version such as `26.2`; the larger where it is not known."""
    return _GIB if version(macos) >= _FEWER_FROM else 2 * _GIB


def too_large(size_bytes: int, macos: str) -> str | None:
    """What is to be said of a package of this size under this macOS: nothing, or the limit and the remedy."""
    most = most_bytes(macos)
    if size_bytes <= most:
        return None
    return (
        f"the package has {size_bytes / _GIB:.1f} GiB, and above {most // _GIB} GiB Core ML has been seen to run all "
        f"of it on the CPU under macOS {macos or '26 and earlier'} (unverified by us): store its weights in 8 bits "
        "(`impetus-worker convert --quantize int8`), or serve it with mlx"
    )
