"""Tables of a store by the names that a recipe gives them: `digits.scores`."""

from stillroom.errors import InputError
from stillroom.records import read_record
from stillroom.snapshots import default_store
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.runs import last_run

__all__ = ["table"]


def table(name: str, store: str | Store | None = None) -> StoredTable:
    """The table of a stage as the latest run of its recipe left it: `RECIPE.STAGE`, for notebooks.

    Raises:
        InputError: there is no such recipe, stage or table.
    """
    found = Store(store if store is not None else default_store())
    recipe, _, stage = name.partition(".")
    fingerprints = last_run(found, recipe)
    if not fingerprints:
        raise InputError(name, f"no recipe '{recipe}' was ever built in {found.uri}", "`stillroom runs` lists the builds")
    if stage not in fingerprints:
        raise InputError(name, "the recipe has no such stage", f"known: {', '.join(key for key in fingerprints if '--' not in key)}")
    record = read_record(found, fingerprints[stage])
    if record is None:
        raise InputError(name, "the stage was not finished", "`stillroom runs` says why")
    return StoredTable(found, record.table)
