"""The one error that users are meant to read (the plugin imports nothing from `scripts`, which takes it from here)."""

import copyreg
import errno
from typing import Any

# torch's words, and numpy's for arrays whose size is beyond any machine's
WITHOUT_MEMORY = ("can't allocate memory", "array is too big", "iterator is too large", "Maximum allowed dimension")
# torch's words, and blosc2's, for what could not be written
NOT_WRITTEN = ("PytorchStreamWriter failed writing", "Error while creating the NDArray")


class InputError(ValueError):
    """Input that cannot be used: what was got, what is allowed, and how to mend it.

    Raised before any long work starts, so that nothing is half-written. The command line prints it without
    a traceback, in one line, and exits with status 1.
    """

    form = "{got}; allowed: {allowed}; remedy: {remedy}"

    def __init__(self, got: str, allowed: str, remedy: str):
        said = self.form.format(got=got, allowed=allowed, remedy=remedy)
        super().__init__(" ".join(line.strip() for line in said.splitlines()))  # what others say may have several lines
        self.got = got

    def __reduce__(self) -> tuple[Any, ...]:
        """As a process hands it to another: with its one message, which `__init__` would not take."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


def plain_words(error: BaseException) -> InputError | None:
    """What a user can mend, as an `InputError`: bad input, a full or closed disk, too little memory; else None."""
    if isinstance(error, InputError):
        return error
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.strerror} ({file})" if file else error.strerror
    if number == errno.EFBIG:
        return InputError(
            words, "files as large as the limit and the file system allow",
            "a larger limit on the size of files (ulimit -f), or a file system that holds such files; the same command "
            "goes on",
        )  # fmt: skip
    if any(said in words for said in NOT_WRITTEN):  # for whatever reason
        return InputError(
            f"the file could not be written ({words})",
            "room on the disk and a folder that can be written to",
            "free some, or name another folder; the same command goes on",
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InputError(words, "room on the disk", "free some; the same command goes on")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return InputError(words, f"rights to read or write {file or 'it'}", "name another folder, or change its rights")
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
        return InputError(words, "folders all the way, and a name that is free", "name another place")
    without_memory = type(error).__name__ == "OutOfMemoryError" or any(said in words for said in WITHOUT_MEMORY)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or without_memory:
        return InputError(
            f"too little memory: {words}",
            "what fits the memory",
            "a smaller batch_size or spatial_size, or fewer processes",
        )
    return None
