"""What drives a portrait on the command line: speech, a video, a saved motion, nothing; alone or part by part."""
