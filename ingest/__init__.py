"""Raw sources in, cut and cropped clips out: 25 fps constant, 16 kHz mono."""

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported
