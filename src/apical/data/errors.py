"""Errors of data sets: one is missing, or a file of it is damaged."""


class MissingData(ValueError):
    """A data set was not found; the text lists the ways to get it."""


class DamagedFile(ValueError):
    """A data file has unexpected content; the text names the file and says how to replace it."""


def damaged(path: object, found: str, expected: str, again: str) -> DamagedFile:
    """The error for one damaged file.

    Args: found: what it contains.     expected: checksum, size or format.     again: how to replace
        it.
    """
    return DamagedFile(f"{path} is damaged: {found}; expected {expected}. To get it again: {again}")
