"""Parts of Lmk2Video's pipeline: requests, windows, sampling, conditions, frames."""
