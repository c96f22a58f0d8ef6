"""What moves: `Motion`, and what is done with it; rest pose, speakers, expression, retargeting."""
