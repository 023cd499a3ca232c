"""Small networks that are trained on stored features, and what is measured of them."""
