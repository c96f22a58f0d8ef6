"""A local S3 server that asks for credentials, and can go away and come back with what it holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import boto3
from moto.server import ThreadedMotoServer

ACCESS_KEY = "AKIDofthetests"
SECRET = "s3cr3t/of+the=tests"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class LocalS3:
    """An S3 server on a free port, with one bucket.

    Attributes:
        environment: Environment variables with its credentials, for whoever is to read and write there.
    """

    def __init__(self) -> None:
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.host, self.port = "127.0.0.1", 0
        self.start()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{self.host}:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket="clips")

    def uri(self, folder: str) -> str:
        """A folder in the bucket, for which the environment has to hold the credentials."""
        endpoint = f"endpoint_override={self.host}:{self.port}&scheme=http&region=us-east-1"
        return f"s3://clips/{folder}?{endpoint}"

    def uri_with_credentials(self, folder: str) -> str:
        """A folder in the bucket, with credentials: for code that uses the library, not for command lines."""
        return self.uri(folder).replace("://", f"://{ACCESS_KEY}:{quote(SECRET, safe='')}@")

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.stop()

    def start(self) -> None:
        """Start the server again, with all its objects."""
        self._server = ThreadedMotoServer(ip_address=self.host, port=self.port, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        server = self._server._server
        assert server is not None
        server.app = _refusing_strangers(_writing_in_turn(server.app))


def _writing_in_turn(application: Application) -> Application:
    """An application in which a write and its condition are one thing, as on S3; moto's own look and write are two."""
    guard = threading.Lock()

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "PUT":
            return application(environment, start_response)
        with guard:
            return list(application(environment, start_response))

    return answer


def _refusing_strangers(application: Application) -> Application:
    """An application that answers only requests signed with our key; moto itself answers all."""

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environment.get("HTTP_AUTHORIZATION", "")
        if f"Credential={ACCESS_KEY}/" in given:
            return application(environment, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [f"<Error><Code>InvalidAccessKeyId</Code><Message>no such key: {given}</Message></Error>".encode()]

    return answer
