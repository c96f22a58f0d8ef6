"""A local S3 server that can go away and come back with what it holds."""

from __future__ import annotations

import boto3
from moto.server import ThreadedMotoServer

SECRET = "s3cr3t-of-the-tests"


class LocalS3:
    """An S3 server on a free port, with one bucket."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{self.host}:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket="clips")

    def uri(self, folder: str) -> str:
        """A folder in the bucket, with credentials."""
        endpoint = f"endpoint_override={self.host}:{self.port}&scheme=http&region=us-east-1"
        return f"s3://key:{SECRET}@clips/{folder}?{endpoint}"

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.stop()

    def start(self) -> None:
        """Start the server again, with all its objects."""
        self._server = ThreadedMotoServer(ip_address=self.host, port=self.port, verbose=False)
        self._server.start()
