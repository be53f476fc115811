"""What can be wrong with a data set: it is absent, or a file of it is damaged."""


class MissingData(ValueError):
    """A data set is nowhere to be found; the text lists the ways to get it."""


class DamagedFile(ValueError):
    """A data file is not what it should be; the text names it and says how to get it again."""


def damaged(path: object, found: str, expected: str, again: str) -> DamagedFile:
    """The error for one damaged file.

    Args: found: what it is.     expected: checksum, size or form.     again: how to replace it.
    """
    return DamagedFile(f"{path} is damaged: {found}; expected {expected}. To get it again: {again}")
