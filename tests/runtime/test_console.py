"""Cells and words on the console."""

import pytest

from fracray.runtime.console import counted, new_console, new_table


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


def test_a_line_number_stays_a_number(capsys):
    """`:100:` is the short name of an emoji."""
    table = new_table("place")
    table.add_row("gpu.yaml:100: x")
    console = new_console()
    console.print("gpu.yaml:100: [x] wrong")
    console.print(table)
    assert capsys.readouterr().out.count("gpu.yaml:100: ") == 2
