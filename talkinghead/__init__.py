"""talkinghead: the library that all jobs share."""
