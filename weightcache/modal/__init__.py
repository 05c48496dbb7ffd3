"""Weights on a Modal Volume: `WeightVolume`."""

from __future__ import annotations

from .weight_volume import WeightVolume

__all__ = ["WeightVolume"]
