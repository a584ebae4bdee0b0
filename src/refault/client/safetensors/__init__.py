"""Models: files of many tensors, each of which becomes an array on its part of the file."""

from __future__ import annotations

from .loading import load_safetensors

__all__ = ["load_safetensors"]
