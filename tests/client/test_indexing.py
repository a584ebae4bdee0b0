from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refault.client.indexing import byte_bounds, select
from refault.errors import UsageError

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)


def _array(shape: tuple[int, ...], order: Any) -> npt.NDArray[np.int32]:
    return np.zeros(shape, "i4", order=order)


@given(st.data(), SHAPES, st.sampled_from("CF"))
def test_the_bounds_are_those_of_the_selected_elements(
    data: st.DataObject, shape: tuple[int, ...], order: str
) -> None:
    array = _array(shape, order)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    view = select(array, index)
    low, high = byte_bounds(view)
    start = array.__array_interface__["data"][0]

    marked = _array(shape, order)
    marked[index] = -1
    touched = np.flatnonzero(marked.ravel(order="K").view(np.uint8))
    if touched.size == 0:
        assert low == high
    else:
        assert (low - start, high - start) == (touched[0], touched[-1] + 1)


def test_nothing_said_is_everything() -> None:
    array = _array((3, 4), "F")
    low, high = byte_bounds(select(array, None))
    assert high - low == array.nbytes


def test_an_integer_is_a_view_too() -> None:
    array = _array((3, 4), "C")
    assert np.shares_memory(select(array, (1, 2)), array)
    assert select(array, (1, 2)).shape == ()
    assert select(array, np.int64(1)).shape == (4,)


def test_a_view_is_taken_as_it_is() -> None:
    array = _array((3, 4), "C")
    view = array[1:, ::2].T
    assert select(array, view) is view


@pytest.mark.parametrize("where", [[1, 2], (0, [1]), True, (True,), "x", 1.5, np.bool_(1), (None,)])
def test_what_numpy_would_copy_is_refused(where: Any) -> None:
    with pytest.raises(UsageError, match="give an integer, a slice"):
        select(_array((3, 4), "C"), where)


@pytest.mark.parametrize("where", [3, (0, 4), (0, 0, 0)])
def test_an_index_beyond_the_shape_is_an_index_error(where: Any) -> None:
    with pytest.raises(IndexError):
        select(_array((3, 4), "C"), where)
