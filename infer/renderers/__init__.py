"""What shows the motion on the command line: generated images, or drawn landmarks."""
