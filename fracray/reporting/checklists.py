"""The items of CLAIM 2024 and TRIPOD+AI in short words of our own, with the facts of a run that answer each.

Numbers and subjects are those of the published checklists: CLAIM 2024, 44 items (Tejani et al. 2024, doi
10.1148/ryai.240300), and TRIPOD+AI, 52 with the lettered ones (Collins et al. 2024, doi 10.1136/bmj-2023-078378,
table 2). The words are not: whoever hands in a checklist takes the form of the journal.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """An item: its number and subject, the names of the facts that answer it, and what belongs there beside them."""

    number: str
    about: str
    facts: tuple[str, ...] = ()
    todo: str = ""
    only: str = ""  # 'development' or 'evaluation' for an item of TRIPOD+AI that is for studies of that kind alone


SOURCES = {
    "CLAIM 2024": "Tejani et al., Radiology: Artificial Intelligence 6(4), e240300, 2024, doi 10.1148/ryai.240300",
    "TRIPOD+AI": "Collins et al., BMJ 385, e078378, 2024, doi 10.1136/bmj-2023-078378",
    "words": "numbers and subjects are the published ones, in fracray's own words; a journal wants its own form",
}
CLAIM = (
    Item(
        "1",
        "title: a study of AI, and the category of the technology",
        (),
        "a title that says deep learning on bone radiographs",
    ),
    Item("2", "abstract: design, methods, results, conclusions", (), "a structured summary, with the test scores"),
    Item(
        "3", "background, intended use and role of the AI", (), "the clinical question, who uses the output, and when"
    ),
    Item("4", "aims, objectives and hypotheses", (), "what was to be shown, fixed before the test part was scored"),
    Item("5", "prospective or retrospective", (), "how the radiographs were collected, and in which years"),
    Item("6", "goal of the study", (), "for example development, feasibility, or comparison with readers"),
    Item("7", "data sources", ("sources",), "hospitals, dates, and who holds the data"),
    Item(
        "8", "inclusion and exclusion criteria", ("exclusion",), "who was imaged, and which examinations were collected"
    ),
    Item("9", "preprocessing", ("preprocessing",)),
    Item("10", "selection of subsets", ("included",), "whether the collection itself is a selection"),
    Item("11", "de-identification", (), "the method, and who checked it"),
    Item("12", "how missing data were handled", ("missing",)),
    Item("13", "image acquisition protocol", (), "makers of the devices, views, exposure, resolution"),
    Item("14", "how the reference standard was obtained", (), "report, reading by experts, CT, follow-up"),
    Item("15", "why this reference standard", (), "its known errors, and why it was chosen"),
    Item("16", "source of the annotations", (), "number, training and experience of the annotators"),
    Item(
        "17",
        "annotation of the test set",
        (),
        "the steps, instructions and software, and whether they differ for the rest",
    ),
    Item("18", "variability between and within annotators", (), "how it was measured, and differences resolved"),
    Item("19", "how data were assigned to partitions", ("partition",)),
    Item("20", "level at which partitions are disjoint", ("level", "patients")),
    Item(
        "21", "intended sample size of the test part", ("sample",), "a calculation for the test part, if there was one"
    ),
    Item("22", "the model", ("model", "output")),
    Item("23", "software libraries, frameworks and packages", ("software",)),
    Item("24", "initialisation of the parameters", ("initialisation",)),
    Item(
        "25",
        "training: augmentation, stopping, hyperparameters",
        ("training", "augmentation", "imbalance", "selection"),
    ),
    Item("26", "selection of the final model", ("selection",)),
    Item("27", "ensembling", ("ensemble",)),
    Item("28", "metrics", ("metrics",)),
    Item("29", "significance and uncertainty", ("uncertainty",)),
    Item("30", "robustness or sensitivity", ("robustness",), "what is likely to vary where the model is used"),
    Item("31", "explainability or interpretability", ("explanation",)),
    Item("32", "evaluation on internal data", ("performance", "rivals"), "the scores of evaluate --split test"),
    Item("33", "testing on external data", (), "the scores of evaluate on another site, or that there are none"),
    Item("34", "registration of a clinical trial", (), "the registry and number, or not applicable"),
    Item("35", "numbers included and excluded", ("included", "patients")),
    Item(
        "36",
        "characteristics of the cases in each partition",
        ("characteristics",),
        "age, sex, and severity of the patients",
    ),
    Item("37", "metrics with their uncertainty", ("performance", "gain"), "the same on the test part"),
    Item("38", "diagnostic performance and its precision", ("performance", "rivals"), "the same on the test part"),
    Item("39", "failure analysis", ("failures",), "what a radiologist sees in the errors"),
    Item("40", "limitations", ("limitations",), "limits of the study's design"),
    Item("41", "implications for practice, with the intended use", (), "what should follow, and what should not"),
    Item("42", "protocol or additional technical details", (), "where the full protocol is"),
    Item("43", "availability of software, model and data", ("software", "sources"), "where model and data can be had"),
    Item("44", "funding and other support", (), "sources, and the role of the funders"),
)

TRIPOD_AI = (
    Item("1", "title", (), "development or evaluation of a model, population and outcome"),
    Item("2", "abstract", (), "see TRIPOD+AI for abstracts"),
    Item("3a", "healthcare context", (), "diagnosis; why the model is needed, and which models exist"),
    Item("3b", "target population, purpose and users", (), "where in the care pathway, by whom"),
    Item("3c", "known health inequalities", (), "between sociodemographic groups"),
    Item("4", "objectives", (), "development, evaluation, or both"),
    Item("5a", "sources of data", ("sources",), "why these, and whether they are representative"),
    Item("5b", "dates of data", (), "first and last examination"),
    Item("6a", "setting", (), "kind, number and place of the centres"),
    Item("6b", "eligibility", ("exclusion",), "criteria for patients"),
    Item("6c", "treatments", (), "treatments before imaging, or not applicable"),
    Item(
        "7",
        "data preparation and quality checks",
        ("preprocessing", "exclusion"),
        "whether they differ between groups of patients",
    ),
    Item(
        "8a",
        "outcome",
        (),
        "what counts as a fracture, how and when it was assessed, for all groups alike, and why this",
    ),
    Item("8b", "qualification of the outcome's assessors", (), "of those who set the labels, with their demographics"),
    Item("8c", "blinding of the outcome", (), "what assessors knew"),
    Item("9a", "choice of initial predictors", ("model",), "", "development"),
    Item("9b", "definition of predictors", ("preprocessing",), "when and how radiographs are taken"),
    Item("9c", "qualification of the predictors' assessors", (), "not applicable where the picture alone is read"),
    Item("10", "sample size", ("sample",)),
    Item("11", "missing data", ("missing",)),
    Item("12a", "use of the data for development and evaluation", ("partition", "level"), "", "development"),
    Item("12b", "handling of predictors", ("preprocessing", "augmentation"), "", "development"),
    Item("12c", "type of model, how it was built and tuned", ("model", "training", "selection"), "", "development"),
    Item("12d", "heterogeneity between clusters", ("uncertainty",), "differences between sites, if there are several"),
    Item("12e", "measures and plots of performance", ("metrics", "uncertainty")),
    Item("12f", "model updating", (), "recalibration after evaluation, or none", "evaluation"),
    Item("12g", "how predictions were calculated in an evaluation", ("output",), "", "evaluation"),
    Item("13", "class imbalance", ("imbalance",)),
    Item("14", "fairness", (), "what was done for it and why; the report's subgroups show where scores differ"),
    Item("15", "model output and thresholds", ("output",), "", "development"),
    Item("16", "differences between training and evaluation", (), "in setting, eligibility, outcome or devices"),
    Item("17", "ethical approval", (), "board, number, and consent or its waiver"),
    Item("18a", "funding", (), "sources, and the role of the funders"),
    Item("18b", "conflicts of interest", (), "and financial disclosures, of all authors"),
    Item("18c", "protocol", (), "where it is, or that there is none"),
    Item("18d", "registration", (), "registry and number, or none"),
    Item("18e", "data sharing", ("sources",), "how others get the data"),
    Item("18f", "code sharing", ("software",), "where the code of the analysis is"),
    Item("19", "involvement of patients and public", (), "in which steps, or none"),
    Item("20a", "flow of participants, with and without the outcome", ("included", "patients", "partition")),
    Item("20b", "characteristics of participants", ("characteristics",), "overall and by site"),
    Item(
        "20c",
        "comparison of development and evaluation data",
        ("partition",),
        "distribution of demographics and other predictors",
        "evaluation",
    ),
    Item("21", "numbers and outcomes in each analysis", ("partition",)),
    Item("22", "the full model", ("model", "output"), "where the checkpoint is, and who may use it", "development"),
    Item("23a", "performance with intervals", ("performance", "rivals"), "on the test part, and by group"),
    Item("23b", "heterogeneity of performance", (), "between sites, if it was examined"),
    Item("24", "results of model updating", (), "or not applicable", "evaluation"),
    Item("25", "interpretation", (), "with fairness, beside earlier studies"),
    Item("26", "limitations", ("limitations",), "bias, sample, overfitting, missing data"),
    Item("27a", "poor or missing input in use", (), "how a bad radiograph is seen and treated", "development"),
    Item("27b", "users' interaction and expertise", (), "what a user must know and do", "development"),
    Item("27c", "next steps", (), "what must be shown before use, and where else"),
)


def filled(items: tuple[Item, ...], facts: dict[str, str]) -> list[dict[str, str]]:
    """Each item with its answer; what is not known, and what people must add, stands there as TODO."""
    found = []
    for item in items:
        known = [facts[name] for name in item.facts if name in facts]
        todo = item.todo or ("" if known else f"{item.about}: this run does not know it")
        answer = " ".join([*known, *([f"TODO: {todo}"] if todo else [])])
        status = "TODO" if not known else "partly filled" if todo else "filled"
        entry = {"item": item.number, "about": item.about, "status": status, "answer": answer}
        found.append(entry | ({"only_for_studies_of": item.only} if item.only else {}))
    return found
