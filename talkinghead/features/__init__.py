"""Features: what loaders compute from a window of a clip and never store. `table` names them."""
