"""The patient and the study of each file of an imported set, by table, header, and folder or file name.

Links files that share an identifier, and says what is doubtful. Must not open a picture, and must not store an
identifier: what is returned is hashed before it is written.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fracray.data.duplicates import Pair, connected_sets, equal
from fracray.data.images.dicom_header import Header
from fracray.data.sources.csv_file import quoted
from fracray.data.sources.image_folder import RadiographFile
from fracray.data.sources.label_matching import LabelMatch
from fracray.data.sources.label_words import identifier, plain_identifier
from fracray.data.sources.patient_names import patients_by_pattern, patients_by_usual_names, unmatched
from fracray.errors import InputError
from fracray.runtime.console import counted

SOME = "--some-without-patient"

_UID = re.compile(r"\d+(\.\d+){2,}")  # as DICOM's
_MANY = 20  # files that are hardly of as many patients

Say = Callable[[str], None]


@dataclass(frozen=True)
class PatientIds:
    """The identifiers of one file's patient and study, by the table's rows, by header and by path; '' if none."""

    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()

    @property
    def patient(self) -> str:
        return next(filter(None, self.patients), "")

    @property
    def study(self) -> str:
        return next(filter(None, self.studies), "")


def link_patients(
    files: Sequence[RadiographFile],
    found: Mapping[int, LabelMatch],
    pattern: str = "",
    some_without: bool = False,
    say: Say = lambda text: None,
    study_column: str = "",
) -> list[PatientIds]:
    """The ids of each file; files that share any identifier get the first patient among them.

    pattern: of `PatientPattern`; without one, folders with usual names (`patient0001`) count where neither table nor
    header names a patient. Patients whose `plain_identifier` is equal are one. `say` is told that, and what else is
    doubtful. study_column: that of the table's studies; a study that several patients have there, such as the number
    of a visit, links nobody. InputError where the pattern fits nothing, leaves files without any patient (unless
    `some_without`), or puts several patients of the table or of headers into one.
    """
    placeholder = _placeholder(files)
    matches = [found.get(at, LabelMatch()) for at in range(len(files))]
    tabled = [next(iter(match.patients), "") for match in matches]
    headers = [file.header or Header() for file in files]
    headed = ["" if header.patient == placeholder else identifier(header.patient) for header in headers]
    paths = [file.path for file in files]
    if pattern:
        named = patients_by_pattern(paths, pattern)
        _compare(paths, named, [table or header for table, header in zip(tabled, headed, strict=True)], pattern, say)
        without = [at for at in range(len(files)) if not (named[at] or tabled[at] or headed[at])]
        if without and not some_without:
            raise unmatched([paths[at] for at in without], pattern, SOME)
        if without:
            say(_listed("files without a patient", [paths[at] for at in without]))
    elif any(tabled) or any(headed):
        named = [""] * len(files)
    else:
        named = patients_by_usual_names(paths)
        if count := len({one for one in named if one}):
            first = next(filter(None, named))
            say(
                f"patients by folders with usual names: {count:,}, such as {quoted(first)}; --patient-from names others"
            )
    ids_of = [
        PatientIds((*match.patients, header, name), (*match.studies, about.study))
        for match, header, name, about in zip(matches, headed, named, headers, strict=True)
    ]
    _say_several(matches, paths, say)
    _say_doubts([ids.patients for ids in ids_of], say)
    links = _links([[plain_identifier(one) for one in ids.patients] for ids in ids_of])
    links += _links([[about.study] for about in headers])
    ids_of = _with_own_studies(ids_of, _persons(ids_of, links), matches, study_column, say)
    links += _links([ids.studies for ids in ids_of])
    for together in connected_sets(len(files), links):
        patient = next((ids_of[at].patient for at in together if ids_of[at].patient), "")
        if not patient and len({ids_of[at].study for at in together}) > 1:
            patient = ids_of[together[0]].study  # only this links studies that are one by table and header
        for at in together:
            ids_of[at] = replace(ids_of[at], patients=(patient,))
    return ids_of


def _links(named_by: Sequence[Sequence[str]]) -> list[Pair]:
    """Pairs of files that share a name; '' is none."""
    of_files = [(at, name) for at, names in enumerate(named_by) for name in names]
    return [(of_files[one][0], of_files[other][0]) for one, other in equal(name for _, name in of_files)]


def _persons(ids_of: Sequence[PatientIds], links: Sequence[Pair]) -> list[str]:
    """The first patient of the files that each file is linked with, '' if none."""
    persons = [ids.patient for ids in ids_of]
    for together in connected_sets(len(persons), links):
        person = next((persons[at] for at in together if persons[at]), "")
        for at in together:
            persons[at] = person
    return persons


def _with_own_studies(
    ids_of: Sequence[PatientIds], persons: Sequence[str], matches: Sequence[LabelMatch], column: str, say: Say
) -> list[PatientIds]:
    """A study of the table that several patients have becomes one of each, and none where the patient is not known."""
    first: dict[str, int] = {}
    shared: dict[str, tuple[int, int]] = {}  # each with a file of two patients
    for at, (match, person) in enumerate(zip(matches, persons, strict=True)):
        for study in match.studies if person else ():
            if _UID.fullmatch(study):  # no two patients have one
                continue
            if persons[before := first.setdefault(study, at)] != person:
                shared.setdefault(study, (before, at))
    if shared:
        study, (one, other) = next(iter(shared.items()))
        say(
            f"{counted(len(shared), 'value')} of the column {quoted(column)} {'is' if len(shared) == 1 else 'are'} of "
            f"several patients, such as {quoted(study)} of {quoted(persons[one])} and {quoted(persons[other])}: taken "
            "as a number that each patient has, as of visits, and not as a study that links them; if they are one "
            "patient, correct the table"
        )

    def own(study: str, person: str) -> str:
        return study if study not in shared else f"{plain_identifier(person)}\0{study}" if person else ""

    return [
        replace(ids, studies=tuple(own(study, person) for study in ids.studies))
        for ids, person in zip(ids_of, persons, strict=True)
    ]


def _placeholder(files: Sequence[RadiographFile]) -> str:
    """The patient id, if the headers of several studies share one ('ANONYMOUS' or the like): it links nothing."""
    headers = [file.header for file in files if file.header and identifier(file.header.patient)]
    patients = {header.patient for header in headers}
    return patients.pop() if len(patients) == 1 and len({header.study for header in headers}) > 1 else ""


def _say_doubts(patients: Sequence[tuple[str, ...]], say: Say) -> None:
    spelled: dict[str, dict[str, None]] = {}
    for one in patients:
        for name in filter(None, one):
            spelled.setdefault(plain_identifier(name), {})[name] = None
    several = [list(spellings) for spellings in spelled.values() if len(spellings) > 1]
    if several:
        say(
            f"{counted(len(several), 'patient is', 'patients are')} written in several ways, such as "
            f"{quoted(several[0][0])} and {quoted(several[0][1])}: ids that differ only in case, spaces, "
            "leading zeros, or how their letters and signs are encoded, are taken as one patient"
        )
    known = [next(filter(None, one), "") for one in patients]
    if len(spelled) == len(known) >= _MANY:
        say(f"each of the {len(known):,} files has a patient of its own: make sure that these ids are of patients")
    if len(spelled) == 1 and len(known) > 1 and all(known):
        say(
            f"all {len(known):,} files have the same patient, {quoted(known[0])}: it is in one part, so this set "
            "can only be evaluated; name the right column with --column patient=NAME, or the folders with "
            "--patient-from"
        )


def _say_several(matches: Sequence[LabelMatch], paths: Sequence[str], say: Say) -> None:
    """Say which files have several patients, or several studies, in the rows of the table."""
    for what, names in (
        ("patients", [{plain_identifier(one): one for one in match.patients} for match in matches]),
        ("studies", [{one: one for one in match.studies} for match in matches]),
    ):
        several = [at for at, found in enumerate(names) if len(found) > 1]
        if several:
            one, other = list(names[several[0]].values())[:2]
            say(
                f"{counted(len(several), 'file has', 'files have')} several {what} in the table, "
                f"such as {quoted(one)} and {quoted(other)} "
                f"for {paths[several[0]]}: taken as one patient"
            )


def _compare(paths: Sequence[str], named: Sequence[str], others: Sequence[str], pattern: str, say: Say) -> None:
    """Refuse a name that ties several patients of the table or the headers, and say where one of those has several."""
    first: dict[str, int] = {}
    names_of: dict[str, dict[str, None]] = {}
    for at, (name, other) in enumerate(zip(named, others, strict=True)):
        if not (name and other):
            continue
        if plain_identifier(others[before := first.setdefault(plain_identifier(name), at)]) != plain_identifier(other):
            raise InputError(
                f"--patient-from '{pattern}': {paths[before]} and {paths[at]} are one patient by it, {quoted(name)}, "
                f"and two by the table or the headers, {quoted(others[before])} and {quoted(other)}; correct one of "
                "the two, or leave out --patient-from"
            )
        names_of.setdefault(plain_identifier(other), {})[name] = None
    several = [list(names) for names in names_of.values() if len(names) > 1]
    if several:
        say(
            f"by the table or the headers {counted(len(several), 'patient has', 'patients have')} "
            "several names by --patient-from, such as "
            f"{quoted(several[0][0])} and {quoted(several[0][1])}: taken as one patient"
        )


def _listed(what: str, paths: Sequence[str], most: int = 20) -> str:
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return f"{len(paths):,} {what}: {', '.join(paths[:most])}{more}"
