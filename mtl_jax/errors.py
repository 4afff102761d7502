"""The errors that a user can cause. A program prints their message as one line and exits with status 2."""


class MtlError(ValueError):
    """A mistake in a user's input. The message says what was found, what was expected and what to do."""


class DataError(MtlError):
    """A data set, or one of its files, is missing, damaged or unsuitable."""


class ConfigError(MtlError):
    """A config, or an argument, has an unknown key or a value that is not allowed."""


class CheckpointError(MtlError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NotFiniteError(MtlError):
    """More steps were not finite than may be skipped. The parameters are those from before the last one."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
