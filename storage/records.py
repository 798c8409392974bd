"""Writing records: one conditional put, which decides that a stage is done."""

from stillroom.format import prepare
from stillroom.records import Record, read_record, record_key
from stillroom.stores import Store

__all__ = ["put_record"]


def put_record(store: Store, record: Record, leaves: dict[str, list[str]]) -> Record:
    """Write a record, the leaves of its digest first; who comes second gets the winner's record back."""
    prepare(store)
    store.put_json(f"records/{record.fingerprint}.leaves", {"leaves": leaves})
    if store.create_json(record_key(record.fingerprint), record.as_json()):
        return record
    winner = read_record(store, record.fingerprint)
    assert winner is not None
    return winner
