"""The features of the `datasets` library for an Arrow schema, as its files carry them; the library itself is not needed."""

import json
from typing import Any

import pyarrow as pa

from stillroom.fields import heavy_kind, label_names

__all__ = ["HUB", "features_of", "hub_metadata", "hub_schema"]

HUB = b"huggingface"
IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
# What the library calls otherwise than Arrow's own text.
_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32", "date64[ms]": "date64"}


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Features by column, in the JSON of `Features.to_dict()`: pictures are `Image`, labels with class names `ClassLabel`.

    Raises:
        TypeError: a column's type has no feature.
    """
    return {field.name: _column(schema, field) for field in schema}


def hub_metadata(schema: pa.Schema) -> dict[bytes, bytes]:
    """The schema's metadata with its features, which `load_dataset` reads."""
    return {**(schema.metadata or {}), HUB: json.dumps({"info": {"features": features_of(schema)}}, ensure_ascii=False).encode()}


def hub_schema(schema: pa.Schema) -> pa.Schema:
    """The schema as the library keeps tables on disk: a picture is a struct of bytes and path."""
    fields = [field.with_type(IMAGE_TYPE) if heavy_kind(field) == "image" else field for field in schema]
    return pa.schema(fields, hub_metadata(schema))


def _column(schema: pa.Schema, field: pa.Field) -> Any:
    if heavy_kind(field) == "image":
        return {"_type": "Image"}
    names = label_names(schema, field.name)
    # The library refuses a name that stands twice; such a column stays a number.
    if names and len(set(names)) == len(names):
        return {"names": names, "_type": "ClassLabel"}
    return _feature(field.type)


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        raise TypeError(f"{kind} has no feature")
    text = str(kind)
    return {"dtype": _NAMES.get(text, text), "_type": "Value"}
