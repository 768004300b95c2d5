from __future__ import annotations

from collections.abc import Iterator

import pytest

from .lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One ENI that allows all, one tunnel."""
    with Lab() as made:
        yield made
