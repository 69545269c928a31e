"""What can be wrong with a release; every message names the file or field, what was found and what would be right."""


class ReleaseError(Exception):
    """A release cannot be used or written: corrupt, incomplete, or made for another feature plan."""
