"""Vectors as SQL keeps them: little-endian fp32, or fp16 where half the bytes are worth a little precision."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

VectorDtype = Literal["fp32", "fp16"]
_TYPES: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


def pack(vector: NDArray[np.float32], dtype: VectorDtype = "fp32") -> bytes:
    """The bytes of a vector, or of [N, D] of them."""
    return np.ascontiguousarray(vector, _TYPES[dtype]).tobytes()


def unpack(data: bytes, dtype: str = "fp32") -> NDArray[np.float32]:
    """The vector of `pack`, [D] float32; of [N, D] the rows follow each other."""
    return np.frombuffer(data, _TYPES[dtype]).astype(np.float32)
