"""Keys, digests and sealed text. One master secret per installation; every use derives its own key from it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
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
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derive("sign"))

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

    @property
    def public_key(self) -> bytes:
        """32 bytes: with them anybody can tell what this installation has signed."""
        return self._signing.public_key().public_bytes_raw()

    def sign(self, content: bytes) -> bytes:
        """64 bytes: the Ed25519 signature of this installation."""
        return self._signing.sign(content)

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self._master, b"lethe:" + purpose.encode(), hashlib.sha256).digest()


def fingerprint(public_key: bytes) -> str:
    """64 hex digits by which people compare public keys."""
    return hashlib.sha256(public_key).hexdigest()


def is_signed(content: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether the owner of the public key signed just these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True
