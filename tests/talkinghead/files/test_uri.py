"""Credentials in a URI stay out of what people see, and out of command lines."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from talkinghead.files.storage import Storage
from talkinghead.files.uri import (
    hide_known_secrets,
    hide_secrets,
    holds_credentials,
    refuse_credentials,
    without_credentials,
)

# Base64, as AWS makes its secrets, has `/` and `+`; nothing keeps people from passwords with anything else.
secret_texts = st.one_of(
    st.text(min_size=4, max_size=30),
    st.text("abcdEFGH0123/+=", min_size=4, max_size=40),
    st.text("ab:/?#@&=%+ \t'\"<\\é", min_size=4, max_size=20),
)
written = st.sampled_from([str, quote, lambda text: quote(text, safe=""), quote_plus])


def parts(*secrets: str) -> set[str]:
    """All parts of four characters."""
    return {secret[first : first + 4] for secret in secrets for first in range(len(secret) - 3)}


def assert_hidden(shown: str, frame: str, *secrets: str) -> None:
    """Assert that no part of a secret is in a text, unless it is in the text without secrets, too."""
    assert not [part for part in parts(*secrets) if part in shown and part not in frame]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/data?region=us-east-1", "s3://***@bucket/data?region=us-east-1"),
        ("s3://bucket/data", "s3://bucket/data"),
        ("s3://key:sec@ret@bucket/a%20b", "s3://***@bucket/a%20b"),
        ("abfs://c@a.net/x?client_secret=abc&tenant_id=t", "abfs://***@a.net/x?client_secret=***&tenant_id=t"),
        ("gs://anonymous@bucket", "gs://***@bucket"),
        ("file:///data/x", "file:///data/x"),
        ("s3://key:se?cr@et/x@bucket/data?region=r", "s3://***@bucket/data?region=r"),
        ("s3://key:se#cr?region=et@bucket/data", "s3://***@bucket/data"),
        ("s3://key%3Asecret@bucket/data", "s3://***@bucket/data"),
        (
            "s3://bucket/data?endpoint_override=http://user:word@host:9000&scheme=http",
            "s3://bucket/data?endpoint_override=http://***@host:9000&scheme=http",
        ),
        (
            "s3://key:secret@bucket/data?region=r&endpoint_override=user%3Aword%40host:9000",
            "s3://***@bucket/data?region=r&endpoint_override=***@host:9000",
        ),
        ("https://account.net/x?sv=2024&sig=abc%2Fdef", "https://account.net/x?***&sig=***"),
        ("abfs://c@a.net/x?client%5Fsecret=abc", "abfs://***@a.net/x?client%5Fsecret=***"),
        ("abfs://a.net/x?client_secret=abc&def=ghi&tenant_id=t", "abfs://a.net/x?client_secret=***&***&tenant_id=t"),
        ("s3://bucket/name@home/x", "s3://bucket/name@home/x"),
        ("hf://datasets/person/name@v1.0/x", "hf://datasets/person/name@v1.0/x"),
        ("s3://bucket/data?", "s3://bucket/data?"),
    ],
)
def test_people_see_no_credentials(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    storage = Storage(uri)
    assert storage.uri == shown and "secret@" not in repr(storage)
    assert storage.location == uri, "what opens the place again is kept"


@settings(deadline=None)
@given(secret_texts, secret_texts, written)
@example("AKIAEXAMPLE", "wJalr/XUtn?FEMI/K7MD@ENG/bPxRfiCY&EXAMPLE=KEY", str)
@example("name/with:more?region=", "word@x://y", str)
def test_no_part_of_a_password_survives(user: str, password: str, written_as) -> None:
    uri = f"s3://{written_as(user)}:{written_as(password)}@bucket/data?region=r"
    assume("@" not in password or holds_credentials(uri))
    shown = without_credentials(uri)
    frame = "s3://***@bucket/data?region=r"
    assert_hidden(shown, frame, user, password, written_as(user), written_as(password))
    assert shown.endswith("bucket/data?region=r") and holds_credentials(uri)
    assert_no_form_survives(uri, password)


@settings(deadline=None)
@given(secret_texts, written, st.sampled_from(["client_secret", "secret_key", "session_token", "sig", "password"]))
@example("abc&defg=hijk?lmno#pqrs@tuvw", str, "client_secret")
def test_no_part_of_a_secret_option_survives(secret: str, written_as, name: str) -> None:
    uri = f"abfs://bucket/data?{name}={written_as(secret)}&tenant_id=t"
    assert_hidden(without_credentials(uri), f"abfs://bucket/data?{name}=***&tenant_id=t", secret, written_as(secret))
    assert holds_credentials(uri)
    assert_no_form_survives(uri, secret)


@settings(deadline=None)
@given(secret_texts, secret_texts, written)
def test_no_part_of_an_endpoints_password_survives(user: str, password: str, written_as) -> None:
    assume("&" not in written_as(user + password))
    uri = f"s3://bucket/data?endpoint_override=http://{written_as(user)}:{written_as(password)}@host:1&scheme=http"
    shown = without_credentials(uri)
    frame = "s3://bucket/data?endpoint_override=http://***@host:1&scheme=http"
    assert_hidden(shown, frame, user, password, written_as(user), written_as(password))
    assert shown.endswith("@host:1&scheme=http") and holds_credentials(uri)
    assert_no_form_survives(uri, password)


def assert_no_form_survives(uri: str, secret: str) -> None:
    """Assert that a message hides a secret in the forms in which libraries quote it."""
    forms = (secret, quote(secret), quote(secret, safe=""), quote_plus(secret))
    forms += (
        re.sub("%..", lambda found: found[0].lower(), quote(secret)),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        json.dumps(secret)[1:-1],
        html.escape(secret),
        quote(quote(secret, safe="")),
    )
    frame = f"cannot open {without_credentials(uri)}: ***"
    for form in (uri, repr(uri), *forms):
        shown = hide_secrets(f"cannot open {uri}: {form}", uri)
        assert_hidden(shown, frame, *forms)


def test_messages_of_libraries_name_no_credentials() -> None:
    uri = "s3://key:a%2Fb@bucket/data"
    assert hide_secrets(f"cannot\nopen {uri}: a%2Fb or a/b", uri) == "cannot open s3://***@bucket/data: *** or ***"
    with pytest.raises(ValueError, match=r"cannot open s3://\*\*\*@x: ") as caught:
        Storage("s3://key:sec/ret@x").read("a")
    assert "sec/ret" not in str(caught.value) and caught.value.__suppress_context__


def test_parts_of_a_secret_that_a_library_takes_for_a_host_are_hidden() -> None:
    uri = "s3://AKIDAKID:first/second@bucket/x?endpoint_override=http://name:pass/word@host"
    said = hide_secrets("Could not resolve host: second; name; word; AKIDAKID", uri)
    assert said == "Could not resolve host: ***; ***; ***; ***"


def test_secrets_of_the_environment_are_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtn/FEMI+K7")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass%2Fword@proxy:3128")
    monkeypatch.setenv("HF_TOKEN", "x")  # no secret, and in many words
    uri = "s3://bucket/data"
    assert hide_secrets("wJalrXUtn%2FFEMI%2BK7 of s3://bucket/data", uri) == "*** of s3://bucket/data"
    said = hide_known_secrets("Bearer 0123456789abcdef\ncannot reach http://user:pass%2Fword@proxy:3128: pass/word")
    assert said == "Bearer ***\ncannot reach http://***@proxy:3128: ***"
    assert hide_known_secrets("an example") == "an example"


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("The key AKIAIOSFODNN7EXAMPLE does not exist", "AKIAIOSFODNN7EXAMPLE"),
        ("<AWSAccessKeyId>some-key</AWSAccessKeyId><SignatureProvided>some-key</SignatureProvided>", "some-key"),
        ("GET http://h/k?X-Amz-Credential=some-key%2F20240101&X-Amz-Signature=some-key&x=1", "some-key"),
        ("403 for https://account.blob.net/c?sv=2024&sig=some-key", "some-key"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=some-key/20240101/s3, Signature=some-key", "some-key"),
        ("'Proxy-Authorization': 'Basic some-key'", "some-key"),
        ("cannot fetch https://name:some-key@host/simple/", "some-key"),
    ],
)
def test_requests_that_a_message_quotes_are_hidden(said: str, secret: str) -> None:
    shown = hide_known_secrets(said)
    assert secret not in shown and "***" in shown


@pytest.mark.parametrize(
    "said", ["see https://host/page?id=3#part", "s3://bucket/x?region=r is empty", "config=3, sigma=2, key=4, a:b@c"]
)
def test_messages_without_secrets_stay_as_they_are(said: str) -> None:
    assert hide_known_secrets(said) == said


@pytest.mark.parametrize(
    "said", ["a" * 10**6, "http://x" + "?key" * 10**5, "http://x?" + "key" * 10**5, "x://@:" * 10**5]
)
def test_long_messages_of_strangers_do_not_take_for_ever(said: str) -> None:
    """With time in the square of the length, each would take hours."""
    hide_known_secrets(said)


@pytest.mark.parametrize(
    "argument",
    [
        "s3://key:secret@bucket/data",
        "--data=s3://key:sec ret'x@bucket/data",
        "--config.weights='s3://key:secret@bucket/data'",
        "s3://bucket/data?endpoint_override=http://user:word@host",
        "abfs://container@account.net/x?client_secret=abc",
        "https://account.net/x?sv=1&sig=abc",
        "https://token@host/data",
        "--train.x 3 --data s3://key:secret@bucket/data",
    ],
)
def test_a_command_line_with_credentials_is_refused(argument: str) -> None:
    assert holds_credentials(argument)
    with pytest.raises(ValueError, match="command lines: take them out and") as caught:
        refuse_credentials(["shards", argument])
    assert "\n" not in str(caught.value)
    assert not [word for word in (":secret", "sec ret", "word", "abc", "token") if word in str(caught.value)[:50]]


def test_the_refusal_says_where_credentials_belong() -> None:
    with pytest.raises(ValueError, match=r"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment$"):
        refuse_credentials(["--data", "s3://key:secret@bucket/data"])
    with pytest.raises(ValueError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        refuse_credentials(["--data", "gs://key:secret@bucket/data"])


@pytest.mark.parametrize(
    "argument",
    [
        "s3://bucket/data?region=us-east-1&endpoint_override=127.0.0.1:9000&scheme=http",
        "gs://anonymous@bucket",
        "abfs://container@account.dfs.core.windows.net/x",
        "hf://datasets/person/name@v1.0/x",
        "file:///data/a:b@c",
        "ray://head:10001",
        "/data/a:b@c",
        "--text=mail me@home: now",
        "--latents.vae=folder",
    ],
)
def test_a_command_line_without_credentials_passes(argument: str) -> None:
    refuse_credentials(["--data", argument])


def test_files_are_named_before_the_options() -> None:
    assert Storage("s3://k:s@b/data/?region=r").describe("DATASET.json") == "s3://***@b/data/DATASET.json?region=r"
