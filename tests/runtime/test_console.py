"""Cells and words on the console."""

import pytest

from fracray.runtime.console import counted


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2345, ("image",), "2,345 images"),
        (1, ("patient is", "patients are"), "1 patient is"),
        (2, ("patient is", "patients are"), "2 patients are"),
    ],
)
def test_one_and_many(number, words, said):
    assert counted(number, *words) == said
