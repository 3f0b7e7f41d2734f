"""The operator's password as ``nodestr init`` makes or takes it."""

from __future__ import annotations

from pathlib import Path

from node.commands.common import Failure


class NewPassword:
    """The operator's password, and the file of its hash.

    Raises Failure when the given one cannot be used, or would replace another.
    """

    def __init__(self, file: Path, source: Path | None) -> None:
        from node.admin.password import WeakPassword, hash_password
        from node.ops.operator_password import new_password, read_password

        self.file = file
        self.made: str | None = None
        """To be shown, once it is written."""
        self.hashed: str | None = None
        """None: there is one already, and it stays."""
        if file.exists():
            if source is not None:
                raise Failure(
                    f"{file} exists and is not overwritten: change the password with"
                    " nodestr admin password, or move the file away"
                )
            return
        try:
            if source is None:
                self.made = new_password()
            self.hashed = hash_password(self.made or read_password(source or Path("-")))
        except (WeakPassword, ValueError) as error:
            raise Failure(f"--admin-password-file: {error}") from None

    def write(self) -> None:
        """Raises OSError."""
        from node.ops.operator_password import write_hash

        if self.hashed is not None:
            write_hash(self.file, self.hashed)

    def take_back(self) -> None:
        """Undo ``write``."""
        if self.hashed is not None:
            self.file.unlink(missing_ok=True)
