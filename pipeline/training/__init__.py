"""How networks are trained here: one loop, and a stage a network."""
