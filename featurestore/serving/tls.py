"""TLS of the read API: which files, checked before anything listens."""

from __future__ import annotations

import ssl
from typing import Any

from featurestore.config import Settings
from featurestore.errors import ConfigError

_PARTS = {"tls_cert": "FS_TLS_CERT", "tls_key": "FS_TLS_KEY", "tls_ca": "FS_TLS_CA"}


def tls_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn takes; nothing for plain HTTP. Raises ConfigError for files that do not work together.

    Changed files count from the next start on. Versions before TLS 1.2 are off, which is Python's default.
    """
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if cert is None and key is None and ca is None:
        return {}
    for field in ("tls_cert", "tls_key"):
        if getattr(settings, field) is None:
            what = f"TLS needs a certificate and its key, and {_PARTS[field]} is not set"
            raise ConfigError(what, hint="--tls-cert FILE --tls-key FILE", field=_PARTS[field])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password of our own OpenSSL would ask the terminal for that of an encrypted key, and wait.
        context.load_cert_chain(str(cert), str(key), password="")
    except OSError as error:
        raise _unusable("certificate and key", f"{cert}, {key}", error, "FS_TLS_CERT, FS_TLS_KEY") from None
    options: dict[str, Any] = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    if ca is None:
        return options
    try:
        context.load_verify_locations(str(ca))
    except OSError as error:
        raise _unusable("certificates for clients", str(ca), error, "FS_TLS_CA") from None
    return {**options, "ssl_ca_certs": str(ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}


def _unusable(what: str, paths: str, error: OSError, field: str) -> ConfigError:
    reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "it is no PEM"
    hint = "expected readable PEM, a key that belongs to the certificate, and no passphrase"
    return ConfigError(f"{what} cannot be used ({paths}): {reason}", hint=hint, field=field)
