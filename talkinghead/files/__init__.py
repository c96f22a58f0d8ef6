"""Files: storage local or remote, writes that take effect whole or not at all, URIs."""
