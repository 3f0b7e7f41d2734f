"""A Nostr-native AI inference provider node, paid with Cashu."""

from importlib.metadata import version

__version__ = version("nodestr")
