from __future__ import annotations

from collections.abc import Iterator

import pytest

from .lab import Lab


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One ENI that allows all, one tunnel."""
    with Lab(workers=request.param) as made:
        yield made
