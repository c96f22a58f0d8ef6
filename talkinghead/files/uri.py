"""URIs of storage, which may hold credentials, and what people may see of them: in messages, pages and command lines.

Whoever pastes a secret into a URI seldom escapes it, so nothing here trusts the syntax: a password may hold any
character, and it ends at the last `@` that can end it. Rather too much is hidden than too little.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)
"""Environment variables whose values no message shows."""
PROXY_VARIABLES = ("all_proxy", "ftp_proxy", "http_proxy", "https_proxy")
"""Environment variables with addresses of proxies, which may hold a password; in capitals, too."""

# What pyarrow's URIs may have after the `?`, as far as it is no secret.
_HARMLESS_OPTIONS = (
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "allow_delayed_open",
    "background_writes",
    "blob_storage_authority",
    "blob_storage_scheme",
    "check_directory_existence_before_creation",
    "client_id",
    "dfs_storage_authority",
    "dfs_storage_scheme",
    "enable_tls",
    "endpoint_override",
    "project_id",
    "region",
    "replication",
    "retry_limit_seconds",
    "scheme",
    "smart_defaults",
    "tenant_id",
    "tls_ca_file_path",
    "tls_verify_certificates",
)
_SECRET_WORDS = "key|secret|token|pass|pwd|signature|credential|auth(?!ority)"
_SECRET_OPTION = re.compile(rf"(?i){_SECRET_WORDS}|^sig$")
_OPTIONS_BEGIN = re.compile(
    rf"\?(?=(?:{'|'.join(_HARMLESS_OPTIONS)}|(?i:[\w.%-]{{0,40}}(?:{_SECRET_WORDS})[\w.%-]{{0,40}}|sig))=)"
)

_SCHEME = "[A-Za-z][A-Za-z0-9+.-]{0,30}://"  # with a limit, so that no message takes long
_URI_IN_TEXT = re.compile(rf"{_SCHEME}[^\s'\"<>]+")
_URI_ARGUMENT = re.compile(rf"(?s)(?:[^\s=:/]+=)?['\"]?({_SCHEME}.+)")  # also `--data=s3://…`; with blanks and quotes
_SHORTEST = 4
"""Characters of the shortest part of a secret that is looked for in messages; a whole secret may be shorter."""

_QUOTED_REQUESTS = (
    (r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b", HIDDEN),
    (r"<(AWSAccessKeyId|SignatureProvided|StringToSign\w*|CanonicalRequest\w*)>[^<]*", rf"<\1>{HIDDEN}"),
    (
        r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|Credential|sig)=[^&\s,;'\"<>]+",
        rf"\1={HIDDEN}",
    ),
    (
        r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer|aws\S*)\s+)?[^\s'\",]+",
        rf"\1{HIDDEN}",
    ),
)
"""Keys and signatures in requests and answers that a library quotes, and what takes their place."""

_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS in the environment to the file that holds them",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS in the environment to the file that holds them",
    "abfs": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET in the environment",
    "abfss": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET in the environment",
}
"""Scheme → where its credentials belong."""


@dataclass(frozen=True)
class _Parts:
    """Parts of a URI, as written."""

    scheme: str
    user: str | None
    """Text before the `@`: a user, perhaps with a password; None without an `@`."""
    place: str
    """Host or bucket, and path."""
    options: tuple[str, ...]
    """`name=value`, or whatever else stands there."""

    @property
    def password(self) -> str:
        """What follows the first colon of the user; empty without one."""
        assert self.user is not None
        # The colon may be escaped as well as not.
        return self.user.partition(":")[2] or unquote(self.user).partition(":")[2]


def without_credentials(uri: str) -> str:
    """A URI for messages and pages: user, password and the values of secret or unknown options hidden."""
    parts = _parts(uri)
    user = "" if parts.user is None else f"{HIDDEN if parts.user else ''}@"
    options = "&".join(_shown(option) for option in parts.options)
    return f"{parts.scheme}://{user}{parts.place}{'?' if parts.options else ''}{options}"


def hide_secrets(text: str, uri: str) -> str:
    """A library's message about `uri`, on one line, without the URI's credentials and those of the environment."""
    text = text.replace(uri, without_credentials(uri))
    return " ".join(hide_known_secrets(_without(text, _secrets(uri))).split())


def hide_known_secrets(text: str) -> str:
    """A message without the secrets of the environment, and without credentials in URIs and requests that it quotes."""
    text = _without(text, _environment_secrets())
    text = _URI_IN_TEXT.sub(
        lambda found: without_credentials(found[0]) if holds_credentials(found[0]) else found[0], text
    )
    for pattern, replacement in _QUOTED_REQUESTS:
        text = re.sub(pattern, replacement, text)
    return text


def holds_credentials(text: str) -> bool:
    """Whether a URI in a text, such as an argument of a command line, holds a password, a key or a token."""
    return any(_holds_credentials(_parts(uri)) for uri in _uris(text))


def refuse_credentials(arguments: Iterable[str]) -> None:
    """Refuse a command line with credentials, since all users of a machine can read the command lines of processes.

    Raises:
        ValueError: There are some; the message says where they belong, and does not show them.
    """
    for argument in arguments:
        for uri in _uris(argument):
            parts = _parts(uri)
            if _holds_credentials(parts):
                advice = _ADVICE.get(parts.scheme.lower(), "give them in the environment or in a file of yours")
                raise ValueError(
                    f"{without_credentials(uri)} was given with credentials, and all users of the machine can read"
                    f" command lines: take them out and {advice}"
                )


def with_whole_writes(uri: str) -> str:
    """The URI, for S3 with pyarrow's option that makes writing a small file one request instead of three."""
    option = "allow_delayed_open"
    if not uri.startswith("s3://") or option in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{option}=true"


def _parts(uri: str) -> _Parts:
    """Take a URI apart by hand, since urlsplit trusts the syntax."""
    scheme, _, rest = uri.partition("://")
    # The options begin where a known one follows a `?`; unless a password that began before it has not ended there.
    begin = _OPTIONS_BEGIN.search(rest)
    address, query = (rest[: begin.start()], rest[begin.end() :]) if begin else (rest, None)
    if query is not None and "@" in query and ":" in address and "@" not in address:
        address, query = rest, None
    # With a password all up to the last `@` is hidden; a user alone is found only where the syntax has one.
    at = address.rfind("@")
    if at >= 0 and ":" not in unquote(address[:at]):
        at = re.split("[/?#]", address, maxsplit=1)[0].rfind("@")
    user, place = (address[:at], address[at + 1 :]) if at >= 0 else (None, address)
    if query is None:
        place, question, further = place.partition("?")
        query = further if question else None
    return _Parts(scheme, user, place, tuple(query.split("&")) if query is not None else ())


def _shown(option: str) -> str:
    """An option of a URI for messages."""
    name, equals, value = option.partition("=")
    if not option or unquote(name) in _HARMLESS_OPTIONS:
        return f"{name}{equals}{_without_user(value)}"
    # Nobody knows whether an unknown name is the rest of a secret with a `&`.
    return f"{name}={HIDDEN}" if equals and re.fullmatch("[\\w%-]+", name) and _is_secret(name) else HIDDEN


def _without_user(value: str) -> str:
    """A harmless option's value, such as an endpoint, without user and password."""
    decoded = unquote(value)
    if "@" not in decoded:
        return value
    scheme = re.match(_SCHEME, decoded)
    return f"{scheme[0] if scheme else ''}{HIDDEN}@{decoded.rpartition('@')[2]}"


def _holds_credentials(parts: _Parts) -> bool:
    if parts.scheme.lower() == "file":
        return False
    if parts.user and (parts.password or parts.scheme.lower() in ("http", "https")):  # a user alone may be a token
        return True
    return any("@" in unquote(option) for option in parts.options) or any(_secret_options(parts))


def _uris(text: str) -> Iterator[str]:
    """Whatever looks like a URI in a text; an argument that is one as a whole, whatever stands in it."""
    if whole := _URI_ARGUMENT.fullmatch(text):
        yield whole[1]
    else:
        yield from _URI_IN_TEXT.findall(text)


def _secrets(uri: str) -> set[str]:
    """Everything in a URI that messages must not show, as written."""
    parts = _parts(uri)
    secrets = set()
    if parts.user and parts.password:
        secrets |= {parts.user, *_halves(parts.user), *_halves(unquote(parts.user))}
    # Endpoints may hold a user and a password, too.
    for option in parts.options:
        _, _, value = option.partition("=")
        for form in (value, unquote(value)):
            user = re.sub(f"^{_SCHEME}", "", form).rpartition("@")[0]
            secrets |= {user, *_halves(user)}
    return secrets | set(_secret_options(parts))


def _halves(user: str) -> Iterator[str]:
    """User and password, for each colon that may stand between them."""
    for colon in re.finditer(":", user):
        yield from (user[: colon.start()], user[colon.end() :])


def _secret_options(parts: _Parts) -> Iterator[str]:
    """Values of secret options, as written, except empty ones."""
    for number, option in enumerate(parts.options):
        name, _, value = option.partition("=")
        if not _is_secret(name):
            continue
        if value:
            yield value
        # A secret may have a `&` in it: what follows and is no known option may belong to it.
        for further in parts.options[number + 1 :]:
            if unquote(further.partition("=")[0]) in _HARMLESS_OPTIONS:
                break
            value = f"{value}&{further}"
            yield value


def _is_secret(name: str) -> bool:
    """Whether the value of an option is secret, by its name."""
    name = unquote(name)
    return name not in _HARMLESS_OPTIONS and _SECRET_OPTION.search(name) is not None


def _environment_secrets() -> set[str]:
    """Secrets in this process's environment, and the parts of them that a message may show alone."""
    # A very short value is no secret, and would turn up in any message.
    secrets = {value for name in SECRET_VARIABLES if len(value := os.environ.get(name, "")) >= 2 * _SHORTEST}
    for name in PROXY_VARIABLES:
        for proxy in (os.environ.get(name, ""), os.environ.get(name.upper(), "")):
            parts = _parts(proxy if "://" in proxy else f"http://{proxy}")
            if parts.user and parts.password:
                secrets |= {parts.user, parts.password}
    return secrets


def _without(text: str, secrets: set[str]) -> str:
    """A text without secrets, in whatever form it shows them."""
    forms = {form for secret in secrets for form in (secret, unquote(secret), unquote_plus(secret))}
    # A library that takes a secret apart where its syntax says so shows parts of it.
    parts = {part for form in forms for part in re.split(r"[/?#@:&=%+\s]+", form)}
    # What is shorter would make any message unreadable.
    found = {form for form in forms if len(form) >= _SHORTEST - 1} | {part for part in parts if len(part) >= _SHORTEST}
    # All at once, since one secret may be a part of another: where any of them stands, nothing of the text is kept.
    spans = sorted(match.span() for secret in found for match in re.finditer(_pattern(secret), text))
    shown, end = "", 0
    for first, last in spans:
        if first > end or not shown:
            shown += text[end:first] + HIDDEN
        end = max(end, last)
    return shown + text[end:]


@lru_cache(maxsize=256)
def _pattern(secret: str) -> str:
    """Regular expression of a text in which each character may be escaped, as in URIs, HTML, JSON or Python."""
    pattern = ""
    for piece in re.findall(r"\s+|\S", secret):
        forms = "|".join(sorted({form for character in piece for form in _forms(character)}, key=len, reverse=True))
        # Messages are put on one line, where each run of blanks becomes one.
        pattern += rf"(?:{forms}|\s|\+)+" if piece.isspace() else f"(?:{forms})"
    return pattern


@lru_cache(maxsize=1024)
def _forms(character: str) -> frozenset[str]:
    """Regular expressions of the forms in which messages show a character."""
    encoded = "".join(f"%(?:25)*{byte:02X}" for byte in character.encode(errors="surrogatepass"))
    forms = {character, repr(character)[1:-1], ascii(character)[1:-1], json.dumps(character)[1:-1]}
    forms |= {html.escape(character), html.escape(character, quote=False), "\\" + character}
    return frozenset({re.escape(form) for form in forms} | {f"(?i:{encoded})"})
