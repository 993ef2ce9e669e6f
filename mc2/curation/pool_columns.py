"""Which column of a parquet pool is what: by name where the user gives one, else by the names that such files usually have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt


@dataclass(frozen=True)
class PoolColumns:
    """Names of the columns of a parquet pool; an empty name is for a column that shall not be used.

    Args:
        url: Where the image can be had. By default url or image_url, in any spelling (URL, imageUrl).
        key: Name of the pair, strings or integers. By default key, __key__, else uid; without one, the hash of the URL.
        caption: Strings or lists of strings. By default captions, else one of caption, text, txt, alt, alt_text.
        image: The encoded image, bytes or {bytes, path}. By default one of image, jpg, image_bytes.
        hint: The language that the page declares. By default hint, else one of language, lang.
    """

    url: str | None = None
    key: str | None = None
    caption: str | None = None
    image: str | None = None
    hint: str | None = None


BY_NAME = PoolColumns()  # all found by their names


# --- which column is what -----------------------------------------------------------------------------------------------


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind) or pt.is_null(kind) or _is_bytes(kind))


def _is_captions(kind: pa.DataType) -> bool:
    return _is_text(kind) or ((pt.is_list(kind) or pt.is_large_list(kind)) and _is_text(kind.value_type))


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or pt.is_integer(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pt.is_null(kind):
        return True
    return _is_bytes(kind) or (pt.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type))


@dataclass(frozen=True)
class _Role:
    """names: the spellings to look for, without case and punctuation; those of an earlier group win."""

    names: tuple[tuple[str, ...], ...]
    fits: Callable[[pa.DataType], bool]
    need: str


_ROLES = {
    "url": _Role((("url", "imageurl"),), _is_text, "strings"),
    "key": _Role((("key",), ("uid",)), _is_key, "strings or integers"),
    "caption": _Role((("captions",), ("caption", "text", "txt", "alt", "alttext")), _is_captions, "strings or lists of strings"),
    "image": _Role((("image", "jpg", "imagebytes"),), _is_image, "bytes or {bytes, path}"),
    "hint": _Role((("hint",), ("language", "lang")), _is_text, "strings"),
}


def find_columns(schema: pa.Schema, wanted: PoolColumns, where: str) -> PoolColumns:
    """The columns of a file, None for what it has not. Errors: ValueError that lists the columns if one is missing, of a wrong type, or there twice."""
    found = PoolColumns(**{role: _find(schema, role, getattr(wanted, role), where) for role in _ROLES})
    if found.caption is None:
        raise ValueError(f"{where}: found no column with captions ({_listed(schema)}), need one; name it with --columns.caption")
    if found.key is None and found.url is None:
        raise ValueError(
            f"{where}: found neither a URL nor a key ({_listed(schema)}), need one; name it with --columns.url or --columns.key"
        )
    return found


def _find(schema: pa.Schema, role: str, wanted: str | None, where: str) -> str | None:
    if wanted == "":
        return None
    rule = _ROLES[role]
    if wanted is None:
        plain = [(field.name, "".join(filter(str.isalnum, field.name.lower()))) for field in schema if rule.fits(field.type)]
        groups = ([name for name, spelling in plain if spelling in group] for group in rule.names)
        candidates = next((group for group in groups if group), [])
    else:
        candidates = [name for name in schema.names if name == wanted]
        if not candidates:
            raise ValueError(f"{where}: found no column {wanted!r} ({_listed(schema)}), need it for the {role}; mend --columns.{role}")
    if len(candidates) > 1:
        raise ValueError(
            f"{where}: found several columns for the {role} ({', '.join(candidates)}), need one; name it with --columns.{role}"
        )
    if wanted is not None and not rule.fits(schema.field(wanted).type):
        raise ValueError(f"{where}: found {schema.field(wanted).type} in column {wanted!r}, need {rule.need} for the {role}")
    return candidates[0] if candidates else None


def _listed(schema: pa.Schema) -> str:
    shown = ", ".join(f"{field.name} {field.type}" for field in list(schema)[:20])
    return f"its columns: {shown}{' ...' if len(schema) > 20 else ''}" if len(schema) else "it has no columns"
