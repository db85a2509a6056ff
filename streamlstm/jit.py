"""Numba's ``njit`` as all functions here are compiled by it: without what calls them from C.

That wrapper would be a sixth of the time to compile, and nothing calls a function so: other
compiled code does by its name, or by the address of the function itself (`memory.require`).
"""

from functools import partial

import numba

njit = partial(numba.njit, no_cfunc_wrapper=True)
