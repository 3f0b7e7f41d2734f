"""What an admin endpoint gets and gives; HTTP is a matter of ``node/transport/http/admin.py``.

An endpoint is ``async (AdminRequest) -> document``: a document is anything JSON can hold. Errors
are those of ``node/errors.py``. Endpoints that go on telling give an async iterator of documents
instead (``AdminRoute.stream``), sent as server-sent events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One call of a logged-in operator.

    Args:
        parameters: those in the path (``{id}``), decoded.
        query: the query's first values by name.
        document: the JSON object of the body; empty without one.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)


Answer: TypeAlias = Callable[[AdminRequest], Awaitable[Any]]
Stream: TypeAlias = Callable[[AdminRequest], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """An endpoint below ``/admin/api``; exactly one of ``answer`` and ``stream`` is given.

    Args:
        path: such as ``/accounts`` or ``/models/{id}``; a parameter takes the rest of the path up
            to the next literal part, slashes included, so that it can name a model.
    """

    method: str
    path: str
    answer: Answer | None = None
    stream: Stream | None = None
