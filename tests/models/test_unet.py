from __future__ import annotations

import pytest

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import unet


class TestUnet(ModelContract):
    name = "unet"
    shapes = [(1, 8, 8), (3, 13, 10)]
    tasks = ("segmentation",)


class TestWithGroups(TestUnet):
    params = {"norm": "group"}


def test_an_image_that_is_too_small_for_the_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="unet with 3 levels needs images .* of at least 8 pixels a side"):
        unet.build(unet.Params(levels=3), ModelSpec((1, 4, 9), 2, "segmentation"))
