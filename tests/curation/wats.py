"""WAT files for the tests, written with warcio as Common Crawl's are: a gzip member for each record."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warcio.warcwriter import WARCWriter

JSON = dict[str, Any]


def page(url: str, links: Sequence[JSON], *, base: str = "", metas: Sequence[JSON] = (), headers: JSON | None = None) -> JSON:
    """The JSON of a page."""
    head: JSON = {"Title": "a page", **({"Base": base} if base else {}), **({"Metas": list(metas)} if metas else {})}
    html = {"Head": head, "Links": [{"path": "A@/href", "url": "/next", "text": "next"}, *links]}
    response = {"Response-Message": {"Status": "200"}, "Headers": headers or {"Content-Type": "text/html"}, "HTML-Metadata": html}
    payload = {"Actual-Content-Type": "application/http; msgtype=response", "HTTP-Response-Metadata": response}
    warc = {"WARC-Type": "response", "WARC-Target-URI": url}
    return {"Container": {"Offset": "0"}, "Envelope": {"Format": "WARC", "WARC-Header-Metadata": warc, "Payload-Metadata": payload}}


def image(url: str, alt: str | None = None, path: str = "IMG@/src", **more: str) -> JSON:
    return {"path": path, "url": url, **({} if alt is None else {"alt": alt}), **more}


def wat_members(records: Sequence[JSON | bytes]) -> list[bytes]:
    """The gzip members of a file: its warcinfo, then one for each record; bytes stand for themselves in the place of the JSON."""
    members = []
    for record in [None, *records]:
        buffer = io.BytesIO()
        writer = WARCWriter(buffer, gzip=True)
        if record is None:
            writer.write_record(writer.create_warcinfo_record("x.warc.wat.gz", {"software": "test"}))
        else:
            data = record if isinstance(record, bytes) else json.dumps(record, ensure_ascii=False).encode()
            uri = "http://example.org/"
            writer.write_record(
                writer.create_warc_record(uri, "metadata", io.BytesIO(data), len(data), warc_content_type="application/json")
            )
        members.append(buffer.getvalue())
    return members


def write_wat(path: Path, records: Sequence[JSON | bytes]) -> Path:
    path.write_bytes(b"".join(wat_members(records)))
    return path
