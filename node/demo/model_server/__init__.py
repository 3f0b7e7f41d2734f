"""A small OpenAI-compatible model server: deterministic words, honest usage, faults on demand.

For the demo and the tests. A word is a token. An answer depends on nothing but its request.
A fault is asked for by the model name (``demo#cut``) or by ``server.fault``.
"""

from __future__ import annotations

from node.demo.model_server.server import ModelServer, RecordedCall

__all__ = ["ModelServer", "RecordedCall"]
