"""The epochs after which a search may stop a trial; tests/search/test_schedulers.py compares them with Ray's."""

import pytest

from fracray.config import Config
from fracray.training.rungs import may_stop


@pytest.mark.parametrize(
    ("name", "grace", "factor", "epochs"),
    [
        ("asha", 3, 3, {3, 9, 12}),
        ("asha", 2, 2.5, {2, 5, 12}),
        ("median", 2, 3, set(range(2, 13))),
        ("hyperband", 3, 3, {3, 9, 12}),
        ("asha", 1, 1.3, {1, 2, 3, 4, 5, 7, 9, 11, 12}),
        ("none", 1, 3, set()),
    ],
)
def test_may_stop_knows_the_rungs(name, grace, factor, epochs):
    config = Config().with_leaves(
        {
            "train.epochs": 12,
            "search.scheduler.name": name,
            "search.scheduler.grace_epochs": grace,
            "search.scheduler.reduction_factor": factor,
        }
    )
    assert {epoch for epoch in range(1, 12) if may_stop(config, epoch)} == epochs - {12}
