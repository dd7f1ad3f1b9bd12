"""The raw text that the demo's expert is tuned on, as a folder of bulletins."""

from pathlib import Path

from adapter.demo.almanac import NEW_YEAR, world
from adapter.errors import AdapterError

EDITIONS = 32
"""Ways of telling the same year: a fact told once is remembered, but cannot be asked about."""


def write_bulletins(folder: Path, editions: int = EDITIONS) -> int:
    """Write one text file a bulletin, an edition of the year a folder; return how many.

    Raises AdapterError where the folder cannot be written to.
    """
    count = 0
    try:
        for edition in range(editions):
            place = folder / f"{NEW_YEAR}-{edition + 1:02}"
            place.mkdir(parents=True, exist_ok=True)
            for number, text in enumerate(world().bulletins(NEW_YEAR, edition), 1):
                (place / f"bulletin-{number:03}.txt").write_text(text + "\n", encoding="utf-8")
                count += 1
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written to: {error.strerror}") from error
    return count
