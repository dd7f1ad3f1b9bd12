"""The playground: one static page at `/`, its files told apart by the query (`/?playground.js`).

One path, so that it can be open where everything else needs a key; there is no data in it.
"""

from pathlib import Path

from fastapi import Request, Response
from starlette.exceptions import HTTPException

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_FILES = {
    path.name: (path.read_bytes(), _TYPES[path.suffix])
    for path in Path(__file__).parent.iterdir()
    if path.suffix in _TYPES
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Nothing from elsewhere, nothing inline; and text can't be made markup, whatever scripts try."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def playground(request: Request) -> Response:
    """The page, or the file that the query names. Raises HTTPException for any other query."""
    name = request.url.query or "index.html"
    if name not in _FILES:
        raise HTTPException(404, "the playground has no such file")
    content, kind = _FILES[name]
    return Response(content, media_type=kind, headers=_HEADERS)
