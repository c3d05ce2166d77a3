"""Keys, digests and sealed text. One master secret per installation; every use derives its own key from it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guard.errors import ConfigError

_NONCE = 12


class Secrets:
    """Derives purpose-bound keys from one master secret of at least 32 bytes.

    Raises:
        ConfigError: the master secret is too short, or sealed data does not belong to it.
    """

    def __init__(self, master: bytes) -> None:
        if len(master) < 32:
            raise ConfigError(
                "The master secret has fewer than 32 bytes; make one with `openssl rand -hex 32`."
            )
        self._master = master
        self._sealing = AESGCM(self._derive("seal"))

    @classmethod
    def load(cls, data_dir: Path, env: str | None = None) -> Secrets:
        """The secret given in `env` (hex), else the one kept in `data_dir`/secret, made with mode 0600 once."""
        if env:
            try:
                return cls(bytes.fromhex(env))
            except ValueError:
                raise ConfigError("LETHE_MASTER_KEY must be at least 64 hex digits.") from None
        path = data_dir / "secret"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls(path.read_bytes())
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        return cls(path.read_bytes())

    def digest(self, purpose: str, *parts: str | bytes | int) -> str:
        """Keyed SHA-256 over length-prefixed parts, as 64 hex digits; `purpose` separates the domains."""
        mac = hmac.new(self._derive(purpose), digestmod=hashlib.sha256)
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            mac.update(len(data).to_bytes(8, "big") + data)
        return mac.hexdigest()

    def seal(self, value: Any, *, label: str) -> bytes:
        """AES-256-GCM over the JSON of `value`; `label` is authenticated, so rows cannot be exchanged."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._sealing.encrypt(nonce, json.dumps(value).encode(), label.encode())

    def open(self, sealed: bytes, *, label: str) -> Any:
        try:
            return json.loads(self._sealing.decrypt(sealed[:_NONCE], sealed[_NONCE:], label.encode()))
        except InvalidTag:
            raise ConfigError(
                "Stored text cannot be opened with this master secret; start with the one it was written with."
            ) from None

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self._master, b"lethe:" + purpose.encode(), hashlib.sha256).digest()
