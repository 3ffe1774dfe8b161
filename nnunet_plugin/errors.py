"""The one error that users are meant to read (the plugin imports nothing from `scripts`, which takes it from here)."""


class InputError(ValueError):
    """Input that cannot be used: what was got, what is allowed, and how to mend it.

    Raised before any long work starts, so that nothing is half-written. The command line prints it without
    a traceback and exits with status 1.
    """

    def __init__(self, got: str, allowed: str, remedy: str):
        super().__init__(f"{got}\n  allowed: {allowed}\n  remedy:  {remedy}")
