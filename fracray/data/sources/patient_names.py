"""The patient of a file by its path: folders that are named after patients, or a pattern that the user gives.

Knows paths only. What is found is an identifier like one of a table: it must be hashed before it is stored.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from fracray.data.sources.image_folder import plain_path
from fracray.errors import InputError

# Folders that say themselves that they are a patient's: patient00042, Patient-7, subject_003, pat12, BIDS' sub-01.
_USUAL = re.compile(r"(?:(?:patient|subject|pat)[ _-]?(?:id)?[ _-]?[a-z]{0,3}\d\w*|sub-[a-z]*\d\w*)", re.IGNORECASE)

_NAMED = 3  # paths that a message names


class PatientPattern:
    """`--patient-from`: a shell pattern for the folder or the file name that says who the patient is.

    `*` is any text within one name, `?` a character, `[ab]` one of several. The pattern must fit a complete folder name
    or file name (with or without its suffix); with `/` in it, folders and names that follow each other. The patient is
    what is in parentheses, each `*` taking as little as it can; without any, all that the pattern fits. Upper and lower
    case differ. Folders come first: a file's name is only looked at where no folder above it fits.
    """

    def __init__(self, text: str) -> None:
        """InputError for a pattern that cannot be meant: empty, or with parentheses that do not close."""
        self.text = text = plain_path(text.replace("\\", "/"))
        self._names = text.count("/") + 1
        names = text.replace("(", "").replace(")", "").split("/")
        if not all(names) or text.startswith("(/"):
            raise InputError(f"--patient-from '{text}': names nothing before or after a '/'; write 'patient*'")
        try:
            self._regex = re.compile(_as_regex(text))
        except (re.error, ValueError) as error:
            raise InputError(
                f"--patient-from '{text}': {error}; write a shell pattern such as 'patient*', or '(P*)_*' for the text "
                "before the first '_'"
            ) from None

    def patient(self, path: str) -> str:
        """The patient of the file at `path`, '' where the pattern fits nowhere.

        InputError where it fits several folders with different names, so that it is not known which is meant.
        """
        *folders, name = plain_path(path).split("/")
        found = self._fits(folders, range(len(folders) - self._names + 1))
        if not found:
            last = len(folders) + 1 - self._names
            stem = PurePosixPath(name).stem
            for one in (stem, name):
                if last >= 0 and (found := self._fits([*folders, one], range(last, last + 1))):
                    break
        if len(set(found)) > 1:
            raise InputError(
                f"--patient-from '{self.text}': in {path} it fits '{found[0]}' and '{found[1]}'; write a pattern that "
                "fits one of them, for instance with the folder above it: 'patients/P*'"
            )
        return found[0] if found else ""

    def _fits(self, names: Sequence[str], starts: range) -> list[str]:
        matches = (self._regex.fullmatch("/".join(names[at : at + self._names])) for at in starts)
        found = ("/".join(match.groups()) if self._regex.groups else match[0] for match in matches if match)
        return [one for one in found if one.strip("/")]


def _as_regex(text: str) -> str:
    """A shell pattern as a regular expression; ValueError says what is wrong with its parentheses."""
    parts: list[str] = []
    at, inside = 0, False
    while at < len(text):
        sign = text[at]
        at += 1
        if sign in "()":
            if inside == (sign == "("):
                raise ValueError("its parentheses do not come in pairs")
            inside = sign == "("
            parts.append(sign)
        elif sign == "[" and (end := text.find("]", at + 1 + (text[at : at + 1] == "!"))) > 0:
            chosen = text[at:end].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{'^' + chosen[1:] if chosen.startswith('!') else chosen.replace('^', chr(92) + '^')}]")
            at = end + 1
        else:
            parts.append({"*": "[^/]*?", "?": "[^/]"}.get(sign, re.escape(sign)))
    if inside:
        raise ValueError("its parentheses do not come in pairs")
    return "".join(parts)


def patients_by_pattern(paths: Sequence[str], text: str) -> list[str]:
    """The patient of each path by the pattern `text`, '' where it does not fit.

    InputError where it fits no path, several folders of one, or gives all paths one patient.
    """
    pattern = PatientPattern(text)
    found = [pattern.patient(path) for path in paths]
    if not any(found):
        shown = ", ".join(paths[:_NAMED])
        raise InputError(
            f"--patient-from '{text}': fits no folder and no file name; there are paths such as {shown}. It must fit a "
            "complete name, and parentheses mark the patient: '(P*)_*' for P0123_hand_1.png"
        )
    fitting = [one for one in found if one]
    if len(set(fitting)) == 1 and len(fitting) > 1:
        raise InputError(
            f"--patient-from '{text}': {len(fitting):,} files would be of one patient, '{fitting[0]}'; write a pattern "
            f"that tells patients apart, for paths such as {', '.join(paths[:_NAMED])}"
        )
    return found


def patients_by_usual_names(paths: Sequence[str]) -> list[str]:
    """The patient of each path by folders with usual names, '' where there is none, or more than one.

    None has a patient where all that have one have the same.
    """
    found = []
    for path in paths:
        names = {name for name in path.split("/")[:-1] if _USUAL.fullmatch(name)}
        found.append(names.pop() if len(names) == 1 else "")
    return found if len({one for one in found if one}) > 1 else [""] * len(paths)


def unmatched(paths: Sequence[str], text: str, option: str) -> InputError:
    """The error for files without a patient, which names the first of them."""
    shown = ", ".join(paths[:_NAMED]) + (f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else "")
    return InputError(
        f"--patient-from '{text}': {len(paths):,} files have no patient by it, by the table or by a header: {shown}; "
        f"write a pattern that fits them too, or accept that theirs is unknown with {option}"
    )
