"""Files: storage local or remote, writes that stand whole or not at all, URIs."""
