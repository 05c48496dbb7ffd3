"""Import PyTorch and safetensors at first use, so that a prefetch can start before these slow imports."""

from __future__ import annotations

from typing import Any

# In older versions a crafted file can run code even with weights_only=True: CVE-2025-32434 (fixed in 2.6) and
# CVE-2026-24747 (fixed in 2.10).
OLDEST_SAFE_TORCH = (2, 10)

_INSTALL = "pip install 'weightcache[torch]'"


def import_torch() -> Any:
    """Return the module ``torch``; the ImportError names what to install."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"weightcache.torch needs PyTorch ({error}): {_INSTALL}", name="torch") from error
    return torch


def import_safetensors() -> Any:
    """Return the module ``safetensors.torch``; the ImportError names what to install."""
    try:
        import safetensors.torch
    except ImportError as error:
        message = f"a .safetensors file needs the package safetensors ({error}): {_INSTALL}"
        raise ImportError(message, name="safetensors") from error
    return safetensors.torch


def require_safe_unpickling(torch: Any) -> None:
    """Raise ``ImportError`` if a crafted pickle can run code in this version of PyTorch."""
    major, minor = (int(number) for number in torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_SAFE_TORCH:
        raise ImportError(
            f"a crafted checkpoint can run code in PyTorch {torch.__version__}, even with weights_only=True "
            "(CVE-2026-24747): pip install 'torch>=2.10', or convert the file to .safetensors",
            name="torch",
        )
