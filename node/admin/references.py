"""Which secrets the admin pages may point to: keys of model servers, each for its own server only.

Else whoever has a session, stolen perhaps, could have any secret of the node sent to a server of
his own: what is in a file, and the keys that other servers get.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from node.errors import InvalidValue
from node.settings import Settings, SettingsError
from node.settings_market import UpstreamSettings
from node.settings_types import SecretRef

_KEY = re.compile(r"[!-~]{1,4096}")


def check_references(fresh: Settings, standing: Collection[Settings]) -> None:
    """References that are new, or whose server is, must lead to a key that may go there.

    Args:
        standing: settings in which nothing is new: those in effect, those of the file.

    Raises InvalidValue naming the key. Reads files.
    """
    known = {(name, key, item.base_url) for one in standing for name, key, item in _keyed(one)}
    for name, secret, item in _keyed(fresh):
        if (name, secret, item.base_url) in known:
            continue
        param = f"upstreams.{name}.api_key"
        value = _read(secret, param)
        if any(_is_own(secret, value, one) for one in standing):
            raise InvalidValue(f"{param}: must not be a secret of the node itself", param=param)
        servers = {server for one in standing for server in _servers_of(value, one)}
        if servers and item.base_url not in servers:
            raise InvalidValue(
                f"{param}: this key is for another server already; where it goes is changed in the"
                " configuration file only",
                param=param,
            )
        if not _KEY.fullmatch(value):
            raise InvalidValue(f"{param}: {secret} holds no key, which is one word", param=param)


def _keyed(settings: Settings) -> Iterator[tuple[str, SecretRef, UpstreamSettings]]:
    for item in settings.upstreams:
        if item.api_key is not None:
            yield item.name, item.api_key, item


def _read(secret: SecretRef, param: str) -> str:
    # a pipe or a terminal would be waited for
    if secret.scheme == "file" and not Path(secret.name).is_file():
        raise InvalidValue(f"{param}: {secret} is no file that can be read", param=param)
    try:
        return secret.resolve()
    except SettingsError as error:
        raise InvalidValue(f"{param}: {error}", param=param) from None


def _servers_of(value: str, settings: Settings) -> Iterator[str]:
    """The base URLs that get this key; by its path alone a proxy may tell whose it is."""
    for _, secret, item in _keyed(settings):
        with contextlib.suppress(SettingsError):
            if secret.resolve() == value:
                yield item.base_url


def _is_own(secret: SecretRef, value: str, settings: Settings) -> bool:
    """Whether it holds a secret of the node, however it is reached, is a file of its database, or
    one beside its key that was its key before."""
    key = settings.node.secret_key
    for own in (key, settings.admin_hash):
        with contextlib.suppress(SettingsError):
            if own.resolve() in value:
                return True
    if secret.scheme != "file":
        return False
    file = Path(secret.name).resolve()
    if key.scheme == "file":
        kept = Path(key.name).resolve()
        if file.parent == kept.parent and kept.name in file.name:
            return True
    return file.is_relative_to(settings.node.data_dir.resolve())
