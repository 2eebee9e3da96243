"""Errors a person can act on: one clear line and a documented exit code, never a traceback."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every Waggle program; docs/exit-codes.md explains each."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    MANIFEST = 3
    NETWORK = 4
    IDENTITY = 5
    DATA = 6
    DEVICE = 7
    STATE = 8
    MISSING_EXTRA = 9
    RUN = 10
    CLOCK = 11
    MEMORY = 12


class WaggleError(Exception):
    """An expected failure. ``str(error)`` is the one line a person reads: what is wrong and what to do."""

    exit_code = ExitCode.INTERNAL


class UsageError(WaggleError):
    """A flag, environment variable or settings file holds something unusable."""

    exit_code = ExitCode.USAGE


class ManifestError(WaggleError):
    """The run manifest is invalid; the message names field and reason."""

    exit_code = ExitCode.MANIFEST


class NetworkError(WaggleError):
    """p2pd could not start, an address is occupied, or the network went away for good."""

    exit_code = ExitCode.NETWORK


class IdentityError(WaggleError):
    """The identity file is unreadable, corrupt, or not ours."""

    exit_code = ExitCode.IDENTITY


class DataError(WaggleError):
    """The data the manifest names cannot be read."""

    exit_code = ExitCode.DATA


class DeviceError(WaggleError):
    """The requested device is not there."""

    exit_code = ExitCode.DEVICE


class StateError(WaggleError):
    """The committed state cannot be built, saved or obtained."""

    exit_code = ExitCode.STATE


class MissingExtraError(WaggleError):
    """An optional dependency is needed and not installed."""

    exit_code = ExitCode.MISSING_EXTRA


class RunError(WaggleError):
    """The run is not known to the swarm, or what is known of it is not what its id names."""

    exit_code = ExitCode.RUN


class ClockError(WaggleError):
    """This machine's clock is too far from the swarm's for its records to be taken."""

    exit_code = ExitCode.CLOCK


class OutOfMemoryError(WaggleError):
    """The model needs more memory than this machine has."""

    exit_code = ExitCode.MEMORY
