"""An identity provider of the tests: keys, and tokens that it signs or somebody forges."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from featurestore.clock import SECOND

ISSUER, AUDIENCE = "https://id.example.com/", "featurestore"
_JWK: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "PS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


class SigningKey:
    """A private key of one algorithm."""

    def __init__(self, algorithm: str = "RS256", kid: str | None = "one", bits: int = 2048) -> None:
        make = {"ES256": lambda: ec.generate_private_key(ec.SECP256R1()), "EdDSA": ed25519.Ed25519PrivateKey.generate}
        self._private: Any = make.get(algorithm, lambda: rsa.generate_private_key(65537, bits))()
        self.algorithm, self.kid = algorithm, kid

    @property
    def pem(self) -> bytes:
        public: bytes = self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return public

    @property
    def private_pem(self) -> bytes:
        private: bytes = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private

    @property
    def jwk(self) -> dict[str, Any]:
        public = _JWK[self.algorithm].to_jwk(self._private.public_key(), as_dict=True)
        return {**public, **({"kid": self.kid} if self.kid is not None else {})}

    @property
    def private_jwk(self) -> dict[str, Any]:
        return {**_JWK[self.algorithm].to_jwk(self._private, as_dict=True), "kid": self.kid}

    def token(self, claims: dict[str, Any], *, algorithm: str = "", **header: Any) -> bytes:
        named = {"kid": self.kid} if self.kid is not None else {}
        return jwt.encode(claims, self._private, algorithm or self.algorithm, {**named, **header}).encode()


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def claims(now: int, **changed: Any) -> dict[str, Any]:
    """Those of a sound token of five minutes; a claim that is None is left out. `now` in µs."""
    seconds = now // SECOND
    sound = {"iss": ISSUER, "aud": AUDIENCE, "sub": "scoring", "iat": seconds, "exp": seconds + 300}
    return {
        name: value for name, value in (sound | {"scope": "lookup:flight_delay"} | changed).items() if value is not None
    }


def part(document: Any) -> bytes:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def forged(header: Any, payload: Any, signature: bytes = b"") -> bytes:
    """A token whose signature is whatever is given."""
    return b".".join((part(header), part(payload), part(signature)))


def signed_with_secret(header: dict[str, Any], payload: dict[str, Any], secret: bytes) -> bytes:
    """HS256, made by hand: libraries refuse to take a public key for a secret."""
    signing = part(header) + b"." + part(payload)
    return signing + b"." + part(hmac.digest(secret, signing, hashlib.sha256))
