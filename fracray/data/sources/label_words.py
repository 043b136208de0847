"""What the words of a table or a folder mean: fractured, not fractured, or nothing at all.

Compares words. Must not know of tables, files or options.
"""

import re
import unicodedata
from fractions import Fraction

WORDS = (
    frozenset(
        {
            "0",
            "false",
            "no",
            "n",
            "negative",
            "neg",
            "normal",
            "non fractured",
            "not fractured",
            "no fracture",
            "healthy",
        }
    ),
    frozenset({"1", "true", "yes", "y", "positive", "pos", "abnormal", "fractured", "fracture"}),
)

# What programs write for an empty cell (pandas, numpy, R, SQL, spreadsheets), in lower case.
_EMPTY = frozenset(
    {"", "nan", "-nan", "na", "n/a", "n.a.", "<na>", "#n/a", "#na", "none", "null", "nil", "nat", "<nan>", "(null)"}
)
# What stands for a patient or a study that is not known. As an identifier, it would tie strangers together.
_NOBODY = frozenset(
    {"-", "--", "?", "??", ".", "unknown", "unk", "anonymous", "anonymized", "anonymised", "anon"}
    | {"#ref!", "#value!", "#name?", "#num!", "#div/0!", "#null!"}
)

_DASHES = re.compile("[\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d]")  # hyphens, dashes, and the minus sign
_JOINED = re.compile(r"(?<=[^\W\d_])[-_\s]+(?=[^\W\d_])")  # between letters only: elsewhere a '-' is a sign
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,2})?")
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]+),([0-9]{1,2})")


def label_word(text: str, decimal_comma: bool = False) -> str:
    """A label for comparison: in lower case, '-' and '_' between letters as a space, whole numbers as digits.

    1.0, 01, +1 and 1e0 are 1; a number keeps its sign, and one that is not whole stays as it is written. With
    `decimal_comma`, 1,0 is 1 as well.
    """
    word = " ".join(_DASHES.sub("-", text.lower()).split())
    if decimal_comma:
        word = _DECIMAL_COMMA.sub(r"\1.\2", word) if _DECIMAL_COMMA.fullmatch(word) else word
    if _NUMBER.fullmatch(word):
        number = Fraction(word)  # exact: 0.9999... is not rounded to 1
        return str(number.numerator) if number.denominator == 1 else word
    return _JOINED.sub(" ", word)


def is_empty(text: str) -> bool:
    """Whether a cell says nothing: empty, or NaN, NA, None, null and the like."""
    return text.strip().lower() in _EMPTY


def identifier(text: str) -> str:
    """The identifier of a patient or a study without surrounding space; '' where the text names nobody."""
    word = _ordinary(text).strip()
    return "" if is_empty(word) or word.lower() in _NOBODY else text.strip()


def plain_identifier(name: str) -> str:
    """A patient id for comparison: spreadsheets change case, add spaces, drop leading zeros and write 12 as 12.0."""
    text = re.sub(r"\s+", "", _ordinary(name)).casefold()
    text = re.sub(r"^(\d+)\.0+$", r"\1", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def _ordinary(text: str) -> str:
    """Composed letters, plain digits and dashes, and no signs that nobody sees: programs differ in these."""
    shown = "".join(sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    return _DASHES.sub("-", shown)
