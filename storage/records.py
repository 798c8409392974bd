"""Writing records: one conditional put, which decides that a stage is done."""

import json

from stillroom.records import Record, read_record, record_key
from stillroom.stores import Store

__all__ = ["put_record"]


def put_record(store: Store, record: Record, leaves: dict[str, list[str]]) -> Record:
    """Write a record, the leaves of its digest first; who comes second gets the winner's record back."""
    store.put(f"records/{record.fingerprint}.leaves", json.dumps(leaves).encode())
    if store.create(record_key(record.fingerprint), record.to_json()):
        return record
    winner = read_record(store, record.fingerprint)
    assert winner is not None
    return winner
