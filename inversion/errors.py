"""Every error that a user can meet.

    PatchRebirthError
    ├── InputError       the command or a value was wrong      exit code 2, also a ValueError
    ├── MachineError     the machine lacks what is needed      exit code 3
    └── NumericalError   the optimisation left finite numbers  exit code 1

A message is one sentence: which value was wrong, and what to do.
"""


class PatchRebirthError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 2


class InputError(PatchRebirthError, ValueError):
    """A value, a file or a combination that cannot be used."""

    exit_code = 2


class MachineError(PatchRebirthError, RuntimeError):
    """This machine lacks a device, a package, a network or room for what was asked."""

    exit_code = 3


class NumericalError(PatchRebirthError, ArithmeticError):
    """A loss or a weight stopped being finite."""

    exit_code = 1
