"""WebDataset shards: planning, packing, indexing and verifying them, and the reader that training uses."""

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported
