"""Tokens that are believed, and every kind that is not."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.clock import SECOND
from featurestore.errors import ConfigError
from featurestore.serving.callers import Rejected
from featurestore.serving.tokens import LEEWAY_SECONDS, Policy, Tokens, parse_token_keys
from tests.unit.serving.issuer import AUDIENCE, ISSUER, SigningKey, claims, forged, key_set, signed_with_secret

NOW = 1_772_366_400_000_000
RSA, OTHER = SigningKey("RS256", "rsa"), SigningKey("RS256", "rsa")
EC, ED = SigningKey("ES256", "ec"), SigningKey("EdDSA", "ed")
POLICY = Policy(ISSUER, AUDIENCE, frozenset({"RS256", "ES256", "EdDSA"}))


def tokens_of(content: bytes, policy: Policy = POLICY) -> Tokens:
    return parse_token_keys(content, policy, "keys.json")


SET = tokens_of(key_set(RSA.jwk, EC.jwk, ED.jwk))


def reason(token: bytes, tokens: Tokens = SET, now: int = NOW) -> str:
    with pytest.raises(Rejected) as caught:
        tokens.verify(token, now)
    return caught.value.reason


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=["RS256", "ES256", "EdDSA"])
def test_a_sound_token_says_who_asks_for_what_and_until_when(key: SigningKey) -> None:
    caller, until = SET.verify(key.token(claims(NOW)), NOW)

    assert ("scoring", True, False) == (caller.name, caller.may_lookup("flight_delay@3"), caller.may_lookup("other"))
    assert not caller.admin
    assert NOW + (300 + LEEWAY_SECONDS) * SECOND == until


@pytest.mark.parametrize(
    ("written", "may_lookup", "admin"),
    [
        ({"scope": "openid lookup:flight_delay profile"}, True, False),
        ({"scope": "admin"}, False, True),
        ({"scope": "lookup:* admin"}, True, True),
        ({"scope": None, "scp": ["lookup:flight_delay", 5, None]}, True, False),
        ({"scope": None, "scp": "lookup:flight_delay"}, True, False),
        ({"scope": "", "scp": "admin"}, False, False),
        ({"scope": None}, False, False),
        ({"scope": {"lookup:flight_delay": True}}, False, False),
        ({"scope": "lookup:flight_delay,admin"}, False, False),
        ({"scope": "lookup: flight_delay Admin"}, False, False),
    ],
)
def test_scopes_are_taken_from_where_issuers_write_them(written: dict[str, Any], may_lookup: bool, admin: bool) -> None:
    caller, _ = SET.verify(RSA.token(claims(NOW, **written)), NOW)

    assert (may_lookup, admin) == (caller.may_lookup("flight_delay"), caller.admin)


def test_an_audience_may_be_one_of_several() -> None:
    SET.verify(RSA.token(claims(NOW, aud=["other", AUDIENCE])), NOW)


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        ("issuer", {"iss": "https://evil.example.com/"}),
        ("issuer", {"iss": ISSUER + "/"}),
        ("claims", {"iss": None}),
        ("audience", {"aud": "other"}),
        ("audience", {"aud": ["other"]}),
        ("audience", {"aud": [[AUDIENCE]]}),
        ("audience", {"aud": {AUDIENCE: 1}}),
        ("claims", {"aud": None}),
        ("claims", {"exp": None}),
        ("claims", {"exp": math.inf}),
        ("claims", {"exp": math.nan}),
        ("claims", {"exp": True}),
        ("claims", {"exp": "9999999999"}),
        ("claims", {"exp": [9999999999]}),
        ("claims", {"exp": 1e300}),
        ("expired", {"exp": NOW // SECOND - LEEWAY_SECONDS}),
        ("expired", {"exp": 0}),
        ("not_yet_valid", {"nbf": NOW // SECOND + LEEWAY_SECONDS + 1}),
        ("not_yet_valid", {"iat": NOW // SECOND + LEEWAY_SECONDS + 1}),
        ("claims", {"nbf": "soon"}),
    ],
)
def test_claims_that_do_not_hold_are_refused(expected: str, changed: dict[str, Any]) -> None:
    assert expected == reason(RSA.token(claims(NOW, **changed)))


def test_clocks_may_be_a_little_apart() -> None:
    token = RSA.token(claims(NOW, nbf=NOW // SECOND + LEEWAY_SECONDS, exp=NOW // SECOND + 60))

    SET.verify(token, NOW)
    SET.verify(token, NOW + (60 + LEEWAY_SECONDS) * SECOND - 1)
    assert "expired" == reason(token, now=NOW + (60 + LEEWAY_SECONDS) * SECOND)


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS256", "RS512", "PS256", "rs256", None, 5, ["RS256"]]
)
def test_the_token_has_no_say_in_how_it_is_checked(algorithm: Any) -> None:
    header = {"typ": "JWT", "kid": "rsa", "alg": algorithm}

    assert reason(forged(header, claims(NOW))) in ("unknown_key", "malformed")
    assert reason(signed_with_secret(header, claims(NOW), RSA.pem)) in ("unknown_key", "malformed")


@pytest.mark.parametrize("secret", [RSA.pem, RSA.pem.strip(), b"", b"secret"])
def test_a_public_key_is_never_taken_for_a_secret(secret: bytes) -> None:
    header = {"typ": "JWT", "kid": "rsa", "alg": "HS256"}
    for tokens in (SET, tokens_of(RSA.pem)):
        assert "unknown_key" == reason(signed_with_secret(header, claims(NOW), secret), tokens)


def test_an_algorithm_that_the_policy_leaves_out_is_refused_although_the_key_could() -> None:
    only = tokens_of(key_set(RSA.jwk), Policy(ISSUER, AUDIENCE, frozenset({"PS256"})))

    assert "unknown_key" == reason(RSA.token(claims(NOW)), only)
    only.verify(RSA.token(claims(NOW), algorithm="PS256"), NOW)


def test_a_key_that_says_its_algorithm_serves_no_other() -> None:
    both = Policy(ISSUER, AUDIENCE, frozenset({"RS256", "PS256"}))
    tokens = tokens_of(key_set({**RSA.jwk, "alg": "PS256"}), both)

    assert "unknown_key" == reason(RSA.token(claims(NOW)), tokens)


def test_a_token_of_another_key_with_the_same_id_is_refused() -> None:
    assert "signature" == reason(OTHER.token(claims(NOW)))


def test_a_changed_payload_is_refused() -> None:
    header, _, signature = RSA.token(claims(NOW)).split(b".")
    _, payload, _ = RSA.token(claims(NOW, scope="admin")).split(b".")

    assert "signature" == reason(b".".join((header, payload, signature)))


@pytest.mark.parametrize("kid", ["other", "../../etc/passwd", "", "rsa\0", "ec"])
def test_an_id_leads_to_its_key_or_nowhere(kid: str) -> None:
    assert "unknown_key" == reason(RSA.token(claims(NOW), kid=kid))


@pytest.mark.parametrize("kid", [["rsa"], {"rsa": 1}, 5, True])
def test_an_id_that_is_no_text_is_refused(kid: Any) -> None:
    assert "malformed" == reason(forged({"alg": "RS256", "kid": kid}, claims(NOW)))


def test_keys_that_the_token_brings_along_count_for_nothing() -> None:
    token = OTHER.token(claims(NOW), jwk=OTHER.jwk, jku="https://evil.example.com/keys", x5u="https://evil.example.com")

    assert "signature" == reason(token)


@pytest.mark.parametrize("header", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": True}, {"crit": []}])
def test_a_token_with_critical_extensions_is_refused(header: dict[str, Any]) -> None:
    assert "malformed" == reason(forged({"alg": "RS256", "kid": "rsa", **header}, claims(NOW)))


def test_keys_without_an_id_are_tried_in_turn() -> None:
    one, two = SigningKey("RS256", None), SigningKey("RS256", None)
    tokens = tokens_of(one.pem + two.pem)

    for key in (one, two):
        tokens.verify(key.token(claims(NOW)), NOW)
        tokens.verify(key.token(claims(NOW), kid="whatever"), NOW)
    assert "signature" == reason(SigningKey("RS256", None).token(claims(NOW)), tokens)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RSA.private_pem, "holds a private key"),
        (key_set(RSA.private_jwk), "holds a private key"),
        (key_set(), "has no key for"),
        (key_set(SigningKey(bits=1024).jwk), "has no key for"),
        (SigningKey(bits=1024).pem, "has no key for"),
        (key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), "has no key for"),
        (key_set({**RSA.jwk, "use": "enc"}), "has no key for"),
        (key_set({**RSA.jwk, "alg": "HS256"}), "has no key for"),
        (key_set({"kty": "Unheard", "kid": "s"}), "has no key for"),
        (RSA.pem.replace(b"A", b"B"), "no public key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no public key"),
        (b"", "neither PEM nor"),
        (b"{}", "neither PEM nor"),
        (b'{"keys": 5}', "neither PEM nor"),
        (b'{"keys": [5]}', "neither PEM nor"),
        (b"[" * 100_000, "neither PEM nor"),
        (b"\xff\xfe", "neither PEM nor"),
        (b"".join(SigningKey("ES256").pem for _ in range(5)), "has 5 keys"),
    ],
)
def test_a_file_that_holds_no_usable_keys_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens_of(content)

    assert said in caught.value.message
    assert "FS_JWT_KEYS_FILE" == caught.value.field


def test_keys_of_other_kinds_do_not_hide_those_that_serve() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}
    tokens_of(key_set(secret, {"kty": "OKP", "crv": "X448", "x": "AA"}, RSA.jwk)).verify(RSA.token(claims(NOW)), NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(["alg", "kid", "crit", "b64", "typ", "iss", "aud", "exp", "nbf", "scope", "scp", "sub"])


@given(
    st.binary(max_size=300)
    | st.builds(forged, st.dictionaries(_NAMES, _JSON) | _JSON, st.dictionaries(_NAMES, _JSON) | st.binary())
)
def test_whatever_is_shown_is_rejected_and_never_an_error(token: bytes) -> None:
    assert reason(token)


@given(st.dictionaries(_NAMES, _JSON))
def test_whatever_the_issuer_signs_is_believed_or_rejected(changed: dict[str, Any]) -> None:
    payload = claims(NOW) | changed
    try:
        token = ED.token(payload)
    except TypeError:  # the library writes no such issuer
        token = ED.token({name: value for name, value in payload.items() if name != "iss"})
    try:
        caller, until = SET.verify(token, NOW)
    except Rejected:
        return
    assert (ISSUER, NOW < until) == (payload["iss"], True)
    assert not caller.admin or "admin" in (payload.get("scope", payload.get("scp")) or ())
