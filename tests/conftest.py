"""What holds for all tests."""

from hypothesis import settings

# A busy machine is no mistake, and what fails fails again: the same examples in every run.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
