"""Settings of every property test: a busy machine is not a failure, and nothing is kept between runs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("trine", deadline=None, database=None, print_blob=True)
settings.load_profile("trine")
