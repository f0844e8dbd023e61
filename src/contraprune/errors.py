"""The one exception that is the user's to fix."""


class UserError(ValueError):
    """Bad input: a file, a flag or a model that cannot be used.

    The message is one line that names the file or flag, what was expected and what was found. The command
    line prints it alone and exits with code 2; from Python it is an ordinary ``ValueError``.
    """
