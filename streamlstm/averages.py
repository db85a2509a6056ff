"""Means of the latest numbers, one number at a time."""

from streamlstm.jit import njit


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def weight(count: int, most: int) -> float:
    """What the latest of so many counts for in their mean; beyond ``most``, as of so many.

    A constant then, without a division.
    """
    return 1.0 / most if count >= most else 1.0 / count
