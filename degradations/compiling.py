"""Loops over pixels, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar, cast

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile at the first call, for the argument types. The machine code is cached on disk beside the file if that
    folder is writable.

    Floating-point arithmetic may be reordered. Python's lock is released during the call.
    """
    compiler = partial(numba.njit, fastmath=True, error_model="numpy", nogil=True)
    try:
        made = compiler(cache=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        made = compiler()(function)
    return cast("Callable[Parameters, Result]", made)
