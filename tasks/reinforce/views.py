"""reinforce.views: store views of each sample under its own label, without a teacher."""

from collections.abc import Mapping

import pyarrow as pa

from stillroom.images import ImageFault, probe
from stillroom.operators import Draw, Input, Rows, Table, row
from stillroom.views import MOSAIC_GRID, Peers, view_contract, views_field
from tasks.reinforce._views import Size, Views, common_size, draw_of, peers_of, refuse_fault, refuse_other_size

# B = rows of a batch


class ViewsParams(Views):
    """Parameters of `reinforce.views`."""


def adds(params: ViewsParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    """`views`, with the replay contract in the field's metadata."""
    return {"views": views_field(view_contract(params.as_policy()))}


def setup(inputs: Mapping[str, Table], params: ViewsParams) -> tuple[Size | None, Peers | None]:
    """The size that all images must have, if views keep it, and who may be a partner, if they mix."""
    return common_size("reinforce.views", inputs["samples"], params), peers_of(inputs["samples"], params)


@row(
    version=2,
    inputs={"samples": Input(requires=["image", "label"], also=[MOSAIC_GRID])},
    adds=adds,
    setup=setup,
    keeps_rows=True,
    random=True,
    peers=lambda params: bool(params.as_policy().mixing),
)
def views(batch: pa.RecordBatch, params: ViewsParams, state: tuple[Size | None, Peers | None], draw: Draw) -> Rows:
    """Draw views of each sample, and store them as numbers; each has its row's label.

    A row that says `mosaic_grid` (distill.pca makes such) has views of single cells, as the augmentation of
    PCA asks for (arXiv 2502.06434). Views of one row depend on that row only (where they mix, also on the ids of
    the others); of an image its header is read.

    Args:
        batch: B rows with `sample_id`, `image`, and `mosaic_grid` (integers) where the input has it.

    Returns:
        The B rows with `views`: list<struct<view parameters>>, `count` each.

    Raises:
        StageError: an image whose header can't be read, of another size than the first where `side_px` is
            left out, or with more cells than pixels along a side.
    """
    common, peers = state
    sizes = [_size(sample_id.as_py(), image, common) for sample_id, image in zip(batch["sample_id"], batch["image"], strict=True)]
    return Rows(batch.append_column("views", draw_of("reinforce.views", batch, sizes, params, draw, peers)))


def _size(sample_id: str, image: pa.Scalar, common: Size | None) -> Size:
    try:
        facts = probe(image.as_py() or b"")
    except ImageFault as fault:
        raise refuse_fault("reinforce.views", sample_id, fault) from fault
    refuse_other_size("reinforce.views", sample_id, (facts.height, facts.width), common)
    return facts.height, facts.width
