"""What all tests share: quiet logs, and hypothesis without wall-clock deadlines and with fixed seeds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("waggle", deadline=None, derandomize=True)
settings.load_profile("waggle")
