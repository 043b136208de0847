"""Texts from outside in CSV files, which are mostly opened in a spreadsheet: none may run there as a formula.

As OWASP advises against CSV injection. Knows single texts, and no table.
"""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def as_cell(text: str) -> str:
    """A text for a cell: with an apostrophe in front where a spreadsheet may take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def of_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
