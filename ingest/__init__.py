"""Raw sources in, cut and cropped clips out: 25 fps constant, 16 kHz mono."""
