"""What can go wrong in discovery.

DiscoveryError
├── InvalidKey       not a key, or the wrong kind of key (npub for nsec)
├── InvalidEvent     shape, id or signature is wrong (NIP-01)
├── DecryptError     not for us, tampered with, or not NIP-44 v2
├── EncryptError     a plaintext that NIP-44 cannot carry
├── InvalidAnnouncement   a verified event that is not a provider announcement
├── ForbiddenAddress an outbound URL that netguard refuses
└── RelayError       a relay refused, closed or did not answer in time
"""

from __future__ import annotations


class DiscoveryError(Exception):
    """Base of all errors of this package."""


class InvalidKey(DiscoveryError):
    """Not a key, or the wrong kind of key."""


class InvalidEvent(DiscoveryError):
    """An event whose shape, id or signature is wrong."""


class DecryptError(DiscoveryError):
    """A payload that is not for us, was tampered with, or is not NIP-44 v2."""


class EncryptError(DiscoveryError):
    """A plaintext that cannot be encrypted: empty, too long, or not UTF-8."""


class InvalidAnnouncement(DiscoveryError):
    """A verified event that is not a usable provider announcement."""


class ForbiddenAddress(DiscoveryError):
    """An outbound URL that points where this process must not connect."""


class RelayError(DiscoveryError):
    """A relay refused, closed the connection or did not answer in time."""


class ProxyUnavailable(DiscoveryError):
    """Our own way to onion services does not work."""
