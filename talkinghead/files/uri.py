"""URIs of storage, which may hold credentials, and their form for messages, without them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

HIDDEN = "***"

_SECRET_OPTION = re.compile(r"(?i)key|secret|token|password|signature|credential|^sig$")


def without_credentials(uri: str) -> str:
    """A URI for messages and pages: user, password and the values of secret options hidden, the rest as it is."""
    # By hand, not with urlsplit: a password may hold a `/` that should have been escaped.
    scheme, _, rest = uri.partition("://")
    address, question, query = rest.partition("?")
    user, at, place = address.rpartition("@")
    options = []
    for option in query.split("&"):
        name, equals, value = option.partition("=")
        options.append(f"{name}{equals}{HIDDEN if value and _SECRET_OPTION.search(name) else value}")
    return f"{scheme}://{HIDDEN if user else ''}{at}{place}{question}{'&'.join(options)}"


def hide_secrets(text: str, uri: str) -> str:
    """A library's message about `uri`, on one line, without the URI's credentials."""
    text = " ".join(text.split()).replace(uri, without_credentials(uri))
    # The longest first: one secret may be a part of another.
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(uri: str) -> set[str]:
    """The password, as written and decoded, and the decoded values of secret options."""
    address, _, query = uri.partition("://")[2].partition("?")
    password = address.rpartition("@")[0].partition(":")[2]
    values = {value for name, value in parse_qsl(query) if _SECRET_OPTION.search(name)}
    return {secret for secret in {password, unquote(password), *values} if secret}


def with_whole_writes(uri: str) -> str:
    """The URI, for S3 with pyarrow's option that makes writing a small file one request instead of three."""
    option = "allow_delayed_open"
    if not uri.startswith("s3://") or option in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{option}=true"
