"""Numbers of bytes as people read them. Every size that is printed comes from here, in one form."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Return a number of bytes in the largest unit that does not round it to 0.0, as in "1.5 MB" or "12.3 kB"."""
    if size < 999.5:
        return "1 byte" if round(size) == 1 else f"{size:.0f} bytes"
    if size < 99_950:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 999_950_000 else f"{size / 1e9:.1f} GB"


def rate_text(rate: float) -> str:
    """Return bytes per second, as in "1.5 MB/s"."""
    return f"{size_text(rate)}/s"
