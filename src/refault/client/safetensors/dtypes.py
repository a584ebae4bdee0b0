"""What the dtypes of the format are in numpy and in torch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from refault.errors import UsageError

__all__ = ["numpy_dtype", "torch_dtype"]

NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


def numpy_dtype(dtype: str, what: str) -> np.dtype[Any]:
    """What a dtype of the format is in numpy.

    Raises
    ------
    UsageError
        It is nothing there, or ml_dtypes is not installed.
    """
    if dtype in NUMPY:
        return np.dtype(NUMPY[dtype])
    if dtype not in ML_DTYPES:
        raise UsageError(
            f"{what} is {dtype}, of which several elements share a byte: that is no numpy array;"
            " leave it out (names=...)" + (", or take framework='torch'" if dtype in TORCH else "")
        )
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError as error:
        raise UsageError(
            f"{what} is {dtype}, which needs the ml_dtypes package; pip install"
            " 'refault[safetensors]'"
        ) from error
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, ML_DTYPES[dtype]))
    return found


def torch_dtype(torch: Any, dtype: str, what: str) -> Any:
    """What a dtype of the format is in torch.

    Raises
    ------
    UsageError
        This torch has none.
    """
    found = getattr(torch, TORCH.get(dtype, ""), None)
    if found is None:
        raise UsageError(
            f"{what} is {dtype}, which torch {torch.__version__} does not have; leave it out"
            " (names=...), or take a newer torch"
        )
    return found
