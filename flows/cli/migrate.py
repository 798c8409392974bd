"""stillroom migrate: bring a store of an older format up to this one."""

from flows.cli.shared import DEFAULT_STORE, Store, say


def migrate(store: Store = DEFAULT_STORE) -> None:
    """Bring the store up to the present format, in place; copy it first if it is the only one."""
    from stillroom.format import FORMAT
    from stillroom.stores import Store as OpenStore
    from storage.migrate import migrate as migrate_store

    rewritten = migrate_store(OpenStore(store), say)
    say(f"{store}: format {FORMAT}, {rewritten} objects rewritten" if rewritten else f"{store}: has format {FORMAT} already")
