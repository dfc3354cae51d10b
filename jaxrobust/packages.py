"""Optional packages: if one is missing, its import says what to install."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, task: str) -> Iterator[None]:
    """Makes a failed import inside the block say which extra installs the missing package.

    Args:
      name: An extra of pyproject.toml that lists every package that the block imports.
      task: What needs the packages, as the subject of a sentence.

    Raises:
      ModuleNotFoundError: A package is not installed; the message has the command that installs it.

    Example:
      >>> with extra("data", "Reading images"):
      ...     import a_package_that_nobody_has
      Traceback (most recent call last):
      ...
      ModuleNotFoundError: Reading images needs a_package_that_nobody_has: pip install 'jaxrobust[data]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{task} needs {error.name}: pip install 'jaxrobust[{name}]'", name=error.name
        ) from error
