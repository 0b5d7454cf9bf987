"""The one exception for everything a user can put right."""


class PTQ4VMError(Exception):
    """Bad input: the message says what was expected, what was got, where, and what to do.

    The command line prints it without a traceback.
    """
