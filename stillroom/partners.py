"""Partners: what stored views mix in, shown as the partner's own view before it was mixed."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.errors import StoreError
from stillroom.images import decode_batch
from stillroom.operators import Table
from stillroom.replay import needs_partner, replay_alone
from stillroom.tables import one_array
from stillroom.view_fields import to_numbers

__all__ = ["Partners", "mixed_in"]

# B = views of a batch, M = those of them that are mixed, C H W = what a view shows

Fetch = Callable[[Sequence[str], np.ndarray], tuple[Sequence[np.ndarray], pa.StructArray]]


def mixed_in(sample_ids: Sequence[str], views: pa.StructArray, contract: Mapping[str, Any], fetch: Fetch) -> np.ndarray | None:
    """What `replay` needs of others: for each of B views that is mixed its partner's pixels, zeros elsewhere; None where none is.

    Args:
        sample_ids: whose views they are, B ids.
        views: B views.
        contract: their contract.
        fetch: for M sample ids and M numbers of views gives M images, uint8 [C, H, W], and those views.

    Returns:
        uint8 [B, C, H, W], or None.
    """
    mixed_M = np.flatnonzero(needs_partner(views)).tolist()
    if not mixed_M:
        return None
    # A view without a partner mixes in another view of its own sample.
    partners = [partner or sample_ids[row] for row, partner in zip(mixed_M, views.field("partner").take(pa.array(mixed_M)).to_pylist(), strict=True)]
    images, records = fetch(partners, to_numbers(views)["partner_view"][mixed_M])
    shown_MCHW = replay_alone(images, records, contract)
    out_BCHW = np.zeros((len(views), *shown_MCHW.shape[1:]), np.uint8)
    out_BCHW[mixed_M] = shown_MCHW
    return out_BCHW


class Partners:
    """Rows of a table that its stored views mix in, found by sample id.

    It knows 16 bytes of each row, once it was asked.

    Args:
        table: with `sample_id`, `image` and the column of views.
        column: the column of views.
        channels: 1 or 3, where pictures differ in it; None as they are.
    """

    def __init__(self, table: Table, column: str = "views", channels: int | None = None) -> None:
        self.table, self.column, self.channels = table, column, channels

    def __getstate__(self) -> dict[str, Any]:
        # Not the index: Python's hashes of text are another process's no longer.
        return {"table": self.table, "column": self.column, "channels": self.channels}

    def fetch(self, sample_ids: Sequence[str], numbers_M: np.ndarray) -> tuple[list[np.ndarray], pa.StructArray]:
        """Images of M samples, uint8 [C, H, W], and of each its view of that number.

        Raises:
            StoreError: a sample isn't in the table, or has no such view.
        """
        ids, back_M = np.unique(np.array(sample_ids, object), return_inverse=True)
        found = self.table.take(self._rows(ids), ["sample_id", "image", self.column])
        views = one_array(found[self.column])
        counts_M = views.value_lengths().fill_null(0).to_numpy()[back_M]
        lost = [one for one, other in zip(ids, found["sample_id"].to_pylist(), strict=True) if one != other]
        lost += [sample_ids[at] for at in np.flatnonzero(numbers_M >= counts_M).tolist()]
        if lost:
            problem = f"mix in sample '{lost[0]}', whose row or view is not in this table"
            raise StoreError(f"column '{self.column}'", problem, "nothing may leave a table after its views were mixed; build it again")
        images = [decode_batch([image], channels=self.channels)[0] for image in found["image"].to_pylist()]
        return [images[at] for at in back_M], views.values.take(pa.array(views.offsets.to_numpy()[:-1][back_M] + numbers_M))

    def labels(self, sample_ids: Sequence[str]) -> np.ndarray:
        """The labels of samples, int64 [B]."""
        ids, back_B = np.unique(np.array(sample_ids, object), return_inverse=True)
        return one_array(self.table.take(self._rows(ids), ["label"])["label"]).to_numpy(zero_copy_only=False).astype(np.int64)[back_B]

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        hashes_N, rows_N = self._index
        at = np.searchsorted(hashes_N, np.fromiter(map(hash, ids), np.int64, len(ids)))
        return rows_N[np.minimum(at, len(rows_N) - 1)]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the sample ids, sorted, and their rows. Whoever takes a row sees by its id whether it is the one."""
        parts = [np.fromiter(map(hash, batch.column(0).to_pylist()), np.int64, batch.num_rows) for batch in self.table.scan(["sample_id"])]
        hashes_N = np.concatenate([np.zeros(0, np.int64), *parts])
        rows_N = np.argsort(hashes_N, kind="stable")
        return hashes_N[rows_N], rows_N
