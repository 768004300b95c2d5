"""For all tests: hypothesis draws the same examples in every run, so that one that passed here passes there.

HYPERPLANE_EXPLORE=1 draws others each time, which is how new failures are found; what it finds is written down by
hypothesis and tried again.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("HYPERPLANE_EXPLORE"):
    settings.load_profile("repeatable")
