"""A mean of the latest is the mean, as long as there are not too many."""

import numpy as np
import pytest

from streamlstm.averages import weight


def test_a_mean_of_few_is_their_mean_and_then_forgets() -> None:
    numbers = np.random.default_rng(0).normal(size=50)
    mean = 0.0
    for i, number in enumerate(numbers):
        mean += (number - mean) * weight(i + 1, 20)
        if i < 20:
            assert mean == pytest.approx(numbers[: i + 1].mean())
    old = 0.95 ** np.arange(30)[::-1]
    expected = 0.95**30 * numbers[:20].mean() + 0.05 * (old * numbers[20:]).sum()
    assert mean == pytest.approx(expected)
