"""WebDataset shards: plan, pack, index, verify, and the reader that training uses."""
