"""Parts of the pipeline of Audio2Lmk: its driver."""
