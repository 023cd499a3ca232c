"""What the embedded backbone can do, measured on scenes of things that it never saw: a module each figure.

Every module has tensors, scenes and loaded networks in, and `figure.Figure`s out; `jobs.evaluate_embedded` puts them
together. Nothing here depends on the backbone's number of latent channels, tokens or heads, nor on what it predicts.
"""
