from __future__ import annotations

import pytest

from tests.support.study import Study, make_experiment, trials_first


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study of twelve trials with pruning."""
    folder = tmp_path_factory.mktemp("study")
    return Study(make_experiment(folder, pruner="median"), folder).run(trials_first)
