"""The error that means "the input is wrong", as opposed to "the program is wrong"."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What the user gave cannot be used; one line that says what is wrong and how to mend it (exit code 2)."""
