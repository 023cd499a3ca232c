"""Scenes to train and test on: photographs of single things, pasted over generated grounds, with all their labels."""
