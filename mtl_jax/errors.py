"""The errors that a user can cause. A program prints their message as one line and exits with status 2."""


class MtlError(ValueError):
    """A mistake in what was given to mtl_jax; the message says what was found, what was expected and what to do."""


class DataError(MtlError):
    """A data set, or one of its files, is not what it should be."""


class ConfigError(MtlError):
    """A config, or an override of it, has an unknown key or a value that is not allowed."""


class CheckpointError(MtlError):
    """A checkpoint is damaged, missing, or does not belong to this run."""


class NotFiniteError(MtlError):
    """One more loss or gradient was not finite than may be skipped; the parameters are those of before that step."""
