-- Sessions of the operator: the SHA-256 of the token, and of the password's hash it was opened with.
CREATE TABLE admin_sessions (
    digest     BLOB PRIMARY KEY,
    password   BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
