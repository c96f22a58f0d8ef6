"""talkinghead: the library that all jobs share."""

from talkinghead.runtime.threads import wait_passively

wait_passively()  # whichever part is imported first, it is before PyTorch
