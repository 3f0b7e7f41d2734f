"""What a failure at a mint means for the money.

MintError
├── MintRejected    the mint said no, in a 4xx with a JSON error
└── MintUnknown     no usable answer: it may have acted or not
    └── MintOffline no connection: nothing was sent

Internal to the node: a service turns them into what the client is told.
"""

from __future__ import annotations


class MintError(Exception):
    """A mint did not do what was asked. The text names no secret."""


class MintRejected(MintError):
    """The mint refused the request.

    Codes differ between mints and some mean two things: decide nothing on ``code`` alone.

    Attributes:
        status: the HTTP status, 400 to 499.
        code: the mint's error code (NUT-00), or None.
        detail: the mint's words, shortened; for logs, not for clients.
    """

    def __init__(self, status: int, code: int | None, detail: str) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        super().__init__(f"the mint refused: status {status}, code {code}")


class MintUnknown(MintError):
    """No usable answer: whether the mint acted is not known."""


class MintOffline(MintUnknown):
    """The connection could not be made, so nothing was sent."""
