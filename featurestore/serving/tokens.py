"""JSON Web Tokens of an identity provider: which are believed, and what they allow.

Only algorithms with a public key: with a shared secret whoever can check a token can also make one, and a public key
could be taken for the secret.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from featurestore.clock import SECOND
from featurestore.errors import ConfigError
from featurestore.serving.callers import Caller, Rejected, caller_of

LEEWAY_SECONDS = 30
"""How far the clocks of issuer and API may be apart."""
MAX_UNNAMED = 4
"""Keys without an id are tried one after the other, so they are few."""
MAX_NAMED = 256
MIN_RSA_BITS = 2048
MAX_NAME = 128

_BEGIN = b"-----BEGIN "
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose tokens are believed. All of it is mandatory."""

    issuer: str
    audience: str
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str | None
    key: Any
    algorithms: frozenset[str]
    """What both the key is made for and the policy allows. A token's word for its algorithm chooses among these."""


# A key serves the algorithms of its own kind only.
_KINDS: tuple[tuple[type, Callable[[Any], frozenset[str]]], ...] = (
    (RSAPublicKey, lambda key: _RSA if key.key_size >= MIN_RSA_BITS else frozenset()),
    (EllipticCurvePublicKey, lambda key: frozenset({_CURVES.get(key.curve.name, "")})),
    (Ed25519PublicKey, lambda key: frozenset({"EdDSA"})),
)

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidIssuerError, "issuer"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.MissingRequiredClaimError, "claims"),
)


class Tokens:
    """Checks tokens against keys that were read once; connects to nothing."""

    def __init__(self, policy: Policy, keys: Sequence[_Key]) -> None:
        self._policy = policy
        self._named: dict[str, list[_Key]] = {}
        self._unnamed = [key for key in keys if key.kid is None]
        for key in keys:
            if key.kid is not None:
                self._named.setdefault(key.kid, []).append(key)

    def verify(self, token: bytes, now: int) -> tuple[Caller, int]:
        """Who holds the token, and until when (µs) it is worth something. Raises Rejected."""
        try:
            header = jwt.get_unverified_header(token)
            claims = self._claims(token, header)
        except jwt.PyJWTError as error:
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "malformed")
            raise Rejected(reason) from None
        until = _instant(claims, "exp") + LEEWAY_SECONDS * SECOND
        if now >= until:
            raise Rejected("expired")
        for claim in ("nbf", "iat"):
            if claim in claims and now < _instant(claims, claim) - LEEWAY_SECONDS * SECOND:
                raise Rejected("not_yet_valid")
        return caller_of(str(claims.get("sub", ""))[:MAX_NAME], _scopes(claims)), until

    def _claims(self, token: bytes, header: Mapping[str, Any]) -> dict[str, Any]:
        # No extension is understood here, so that none may be critical.
        if "crit" in header:
            raise Rejected("malformed")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str):
            raise Rejected("malformed")
        known = self._unnamed if kid is None else self._named.get(kid, self._unnamed)
        fitting = [key for key in known if algorithm in key.algorithms]
        for key in fitting[:-1]:
            try:
                return self._decoded(token, key)
            except jwt.InvalidSignatureError:
                continue
        if not fitting:
            raise Rejected("unknown_key")
        return self._decoded(token, fitting[-1])

    def _decoded(self, token: bytes, key: _Key) -> dict[str, Any]:
        # Instants are compared by our own clock.
        return jwt.decode(
            token,
            key.key,
            algorithms=sorted(key.algorithms),
            issuer=self._policy.issuer,
            audience=self._policy.audience,
            options={"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )


def _instant(claims: Mapping[str, Any], name: str) -> int:
    """µs. Text and whatever is no instant are not taken: a token that never ends is a mistake of its issuer."""
    seconds = claims[name]
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or not 0 <= seconds < 1e11:
        raise Rejected("claims")
    return int(seconds * SECOND)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    """`scope` is one text with spaces (RFC 9068); some issuers write `scp`, and lists."""
    written = claims.get("scope", claims.get("scp", ""))
    if isinstance(written, str):
        return written.split()
    return [scope for scope in written if isinstance(scope, str)] if isinstance(written, list) else []


def parse_token_keys(content: bytes, policy: Policy, where: str) -> Tokens:
    """Public keys, as PEM or as a JSON Web Key Set. Raises ConfigError where none of them can serve."""
    pem = content.lstrip().startswith(_BEGIN)
    keys = _of_pem(content, policy, where) if pem else _of_set(content, policy, where)
    if not keys:
        allowed = ", ".join(sorted(policy.algorithms))
        hint = f"RSA keys have {MIN_RSA_BITS} bits or more; secrets (HS256 and the like) are not taken"
        raise ConfigError(f"{where} has no key for {allowed}", hint=hint, field="FS_JWT_KEYS_FILE")
    unnamed = sum(key.kid is None for key in keys)
    if unnamed > MAX_UNNAMED or len(keys) - unnamed > MAX_NAMED:
        what = f"{where} has {len(keys)} keys, expected at most {MAX_UNNAMED} without an id and {MAX_NAMED} with one"
        raise ConfigError(what, hint="give keys an id: a JSON Web Key Set with `kid`", field="FS_JWT_KEYS_FILE")
    return Tokens(policy, keys)


def _of_pem(content: bytes, policy: Policy, where: str) -> list[_Key]:
    keys = []
    for block in content.split(_BEGIN)[1:]:
        if b"PRIVATE KEY-----" in block.partition(b"\n")[0]:
            raise _private(where)
        try:
            keys.append(load_pem_public_key(_BEGIN + block))
        except (ValueError, UnsupportedAlgorithm):
            what = f"{where} holds PEM that is no public key"
            raise ConfigError(what, hint="expected -----BEGIN PUBLIC KEY-----", field="FS_JWT_KEYS_FILE") from None
    return [key for public in keys if (key := _key(public, None, policy)).algorithms]


def _of_set(content: bytes, policy: Policy, where: str) -> list[_Key]:
    try:
        entries = json.loads(content)["keys"]
        found = [entry for entry in entries if entry.get("use", "sig") == "sig" and entry.get("kty") != "oct"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = f"{where} is neither PEM nor a JSON Web Key Set"
        raise ConfigError(what, hint='expected {"keys": [...]}', field="FS_JWT_KEYS_FILE") from None
    if any("d" in entry for entry in found):
        raise _private(where)
    return [key for entry in found if (key := _of_entry(entry, policy)) is not None]


def _of_entry(entry: dict[str, Any], policy: Policy) -> _Key | None:
    """None for a kind of key that is not known here: a set may hold keys for others too."""
    try:
        public = jwt.PyJWK(entry).key
    except jwt.PyJWTError:
        return None
    kid, only = entry.get("kid"), entry.get("alg")
    key = _key(public, kid if isinstance(kid, str) else None, policy)
    algorithms = key.algorithms & {only} if only is not None else key.algorithms
    return _Key(key.kid, public, algorithms) if algorithms else None


def _key(public: Any, kid: str | None, policy: Policy) -> _Key:
    algorithms: frozenset[str] = next((of(public) for kind, of in _KINDS if isinstance(public, kind)), frozenset())
    return _Key(kid, public, algorithms & policy.algorithms)


def _private(where: str) -> ConfigError:
    hint = "the API needs the public key only; consider the private one as leaked"
    return ConfigError(f"{where} holds a private key", hint=hint, field="FS_JWT_KEYS_FILE")
