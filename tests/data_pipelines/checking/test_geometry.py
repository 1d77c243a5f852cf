import tracemalloc

import numpy as np
import pytest

from data_pipelines.checking.geometry import crosses_itself, is_far_outside, polygon_is_empty


@pytest.mark.parametrize(
    ("polygon", "crosses"),
    [
        ([0, 0, 10, 0, 10, 10, 0, 10], False),
        ([0, 0, 10, 10, 10, 0, 0, 10], True),
        ([0, 0, 10, 0, 10, 10, 5, 2, 0, 10], False),
        ([0, 0, 10, 0, 10, 10, 5, -2, 0, 10], True),
        ([0, 0, 5, 0, 5, 0, 10, 0, 10, 10], False),
        ([0, 0, 10, 0, 5, 5, 5, 0, 0, 10], False),
    ],
)
def test_crossing(polygon: list[float], crosses: bool):
    assert crosses_itself(polygon) is crosses


def test_crossing_of_many_points_takes_little_memory():
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    circle = (np.stack([np.cos(angles), np.sin(angles)], 1) * 100).ravel().tolist()
    tracemalloc.start()
    assert not crosses_itself(circle)
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()
    circle[-2:] = [-190, 1]
    assert crosses_itself(circle)


def test_emptiness():
    assert polygon_is_empty([])
    assert polygon_is_empty([1, 1, 5, 5])
    assert polygon_is_empty([1, 1, 1, 5, 1, 9])
    assert not polygon_is_empty([1, 1, 5, 5, 1, 5])


@pytest.mark.parametrize(
    ("coordinates", "far"),
    [
        ([0, 0, 200, 120], False),
        ([-1, -1, 201, 121], False),
        ([-15, 0, 200, 130], False),
        ([0, 0, 200, 135], True),
        ([-25, 0, 10, 10], True),
        ([10, 10, 20, 10, 20, 700], True),
        ([10, 10, 20, 10, 20], False),
    ],
)
def test_far_outside_is_a_tenth_of_the_side(coordinates: list[float], far: bool):
    assert is_far_outside(coordinates, 120, 200) is far
