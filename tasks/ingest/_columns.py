"""The columns of other people's Arrow data: one schema over many files, and which column plays which role."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, label_names
from tasks.ingest._samples import by_number

__all__ = ["Role", "Roles", "assign", "class_names", "fields_of", "hub_features", "id_column", "own_names", "plain", "unified"]

Role = Literal["image", "label", "text", "group", "split", "source"]
ROLES: tuple[Role, ...] = ("image", "label", "text", "group", "split", "source")
# What ingest makes itself, by the role that it is made from.
_MADE = {"image": ("width", "height", "format", "image_hash", "image_at"), "label": ("label_name",)}

_FITTING = {
    "image": "an image is encoded bytes, or a struct<bytes, path> as the datasets library writes it",
    "label": "a label is a whole number, a boolean or text",
    "id": "an id is text, a whole number or bytes",
    "text": "it is text or a whole number",
    "group": "it is text or a whole number",
    "split": "it is text or a whole number",
    "source": "it is text or a whole number",
}
_MAX_CLASSES = 65_536


@dataclass(frozen=True)
class Roles:
    """Source columns by role, the columns that pass through, and where ids come from.

    `id` is "content", "row" or "column:NAME". It is plain data, so that a unit can carry it.
    """

    columns: Mapping[str, str]
    passing: tuple[str, ...]
    id: str


def plain(type_: pa.DataType) -> pa.DataType:
    """The type that tables store: no views, no large offsets, no dictionaries, at any depth."""
    types = pa.types
    if types.is_large_string(type_) or types.is_string_view(type_):
        return pa.string()
    if types.is_large_binary(type_) or types.is_binary_view(type_):
        return pa.binary()
    if types.is_dictionary(type_):
        return plain(type_.value_type)
    if types.is_list(type_) or types.is_large_list(type_) or types.is_list_view(type_) or types.is_large_list_view(type_):
        return pa.list_(type_.value_field.with_type(plain(type_.value_type)))
    if types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(plain(type_.value_type)), type_.list_size)
    if types.is_struct(type_):
        return pa.struct([field.with_type(plain(field.type)) for field in type_])
    return type_


def unified(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema over all files, by (name of the file, schema): union of columns and of the fields of structs.

    A column that is null throughout one file has the type of the others, numbers widen, and what one
    file lacks is null there. Of metadata, the first file's and stillroom's own of each field are kept.

    Raises:
        InputError: a column's types or class names don't agree, or a file has two columns of one name.
    """
    whole: pa.Schema | None = None
    origin: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for file, schema in schemas:
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise InputError(file, f"has two columns called '{twice[0]}'")
        schema = pa.schema([_plain_field(field) for field in schema], schema.metadata)
        try:
            whole = schema if whole is None else pa.unify_schemas([whole, schema], promote_options="permissive")
        except pa.ArrowTypeError as error:
            raise _disagreement(file, schema, whole, origin) from error
        whole = pa.schema([_plain_field(field) for field in whole], whole.metadata)
        for name in schema.names:
            own = own_names(schema, name)
            if own and names.setdefault(name, own) != own:
                raise InputError(file, f"column '{name}' has other class names than in {origin[name]}", "write both with one list")
            origin.setdefault(name, file)
    return pa.schema([]) if whole is None else whole


def own_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names that a file itself gives a column: a ClassLabel of the datasets library, or stillroom's."""
    named = hub_features(schema).get(column, {}).get("names") or label_names(schema, column)
    return [str(name) for name in named] if named else None


def assign(where: str, schema: pa.Schema, columns: Mapping[Role, str] | None, id_: str) -> Roles:
    """Decide which column plays which role: those named, and columns called like a role.

    Raises:
        InputError: a column isn't there, has a type that its role can't have, or would be overwritten.
    """
    given: dict[str, str] = {str(role): name for role, name in (columns or {}).items()}
    chosen: dict[str, str] = {role: role for role in ROLES if role in schema.names and role not in given and role not in given.values()} | given
    used = chosen | ({"id": key} if (key := id_column(id_)) else {})
    for role, name in used.items():
        if name not in schema.names:
            raise InputError(where, f"has no column '{name}'", f"it has {', '.join(schema.names)}")
        if not _fits(role, schema.field(name).type):
            raise InputError(where, f"column '{name}' of type {schema.field(name).type} can't be the {role}", _FITTING[role])
    if id_ == "content" and not {"image", "text"} & chosen.keys():
        raise InputError(where, "has no image or text to make ids from", "give `id: row`, or `id: column:NAME`")
    if "sample_id" in schema.names and "sample_id" not in used.values():
        raise InputError(where, "has a column 'sample_id', which ingest makes itself", "give `id: column:sample_id` to keep those ids")
    made = {made for role in chosen for made in _MADE.get(role, ())} | {"sample_id"}
    passing = tuple(name for name in schema.names if name not in made and name not in chosen.values())
    if clash := [name for name in passing if name in chosen]:
        raise InputError(where, f"has a column '{clash[0]}' beside '{chosen[clash[0]]}', which plays that role", "rename or drop one")
    return Roles(chosen, passing, id_)


def id_column(id_: str) -> str | None:
    """The column that `id: column:NAME` names."""
    return id_.removeprefix("column:") if id_.startswith("column:") else None


def fields_of(schema: pa.Schema, roles: Roles, classes: list[str] | None) -> dict[str, pa.DataType | pa.Field]:
    """The fields of the samples, for an operator's `adds`."""
    fields: dict[str, pa.DataType | pa.Field] = {"sample_id": pa.string()}
    if "image" in roles.columns:
        fields |= {"image": image_field(), "width": pa.int32(), "height": pa.int32(), "format": pa.string()}
    if "label" in roles.columns:
        fields |= {"label": label_field(classes or []), "label_name": pa.string()}
    fields |= {role: pa.string() for role in ("text", "group", "split") if role in roles.columns}
    fields["source"] = pa.string()
    # A column that is null in every file has no type of its own: it is kept as nullable text.
    passing = (schema.field(name) for name in roles.passing)
    return fields | {field.name: field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in passing}


def class_names(where: str, schema: pa.Schema, roles: Roles, declared: list[str] | None, values: Iterable[pa.Array]) -> list[str] | None:
    """Names of the classes in index order: declared, the file's own, or found among `values` (read only then).

    Names found are sorted with digits counted as numbers; whole numbers without names are called by
    their digits, 0 to the largest.

    Raises:
        InputError: more than 65,536 classes were found.
    """
    if "label" not in roles.columns or declared:
        return declared
    column = roles.columns["label"]
    if own := own_names(schema, column):
        return own
    type_ = schema.field(column).type
    if pa.types.is_boolean(type_):
        return ["false", "true"]
    import pyarrow.compute as pc

    found: set[Any] = set()
    for value in values:
        found |= set(pc.unique(value).to_pylist()) - {None}
        if len(found) > _MAX_CLASSES or (pa.types.is_integer(type_) and max(found, default=0) >= _MAX_CLASSES):
            raise InputError(where, f"column '{column}' holds more than {_MAX_CLASSES:,} classes", "is it a label? if so, give `classes`")
    if pa.types.is_integer(type_):
        return [str(label) for label in range(max(found, default=-1) + 1)]
    return sorted(found, key=by_number)


def hub_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the `datasets` library wrote into a schema about each column, or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)} if isinstance(features, dict) else {}


def _plain_field(field: pa.Field) -> pa.Field:
    # Parquet's reader adds metadata of its own to every field.
    meant = {key: value for key, value in (field.metadata or {}).items() if key.startswith(b"stillroom.")}
    return pa.field(field.name, plain(field.type), metadata=meant or None)


def _fits(role: str, type_: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(type_):
        return True
    if role == "image":
        return types.is_binary(type_) or (types.is_struct(type_) and type_.get_field_index("bytes") >= 0 and types.is_binary(type_.field("bytes").type))
    text_or_number = types.is_string(type_) or types.is_integer(type_)
    if role == "label":
        return text_or_number or types.is_boolean(type_)
    return text_or_number or (role == "id" and (types.is_binary(type_) or types.is_fixed_size_binary(type_)))


def _disagreement(file: str, schema: pa.Schema, whole: pa.Schema, origin: Mapping[str, str]) -> InputError:
    """The error that names the first column whose types don't agree."""
    for field in schema:
        if field.name in whole.names:
            known = whole.field(field.name)
            try:
                pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive")
            except pa.ArrowTypeError:
                problem = f"column '{field.name}' is {field.type}, and {known.type} in {origin[field.name]}"
                return InputError(file, problem, "write it with one type in all files")
    raise AssertionError("the schemas agree column by column")
