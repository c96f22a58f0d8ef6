"""What moves: rest pose, speakers, expression, retargeting, blinks, smoothing, resampling."""
