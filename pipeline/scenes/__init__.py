"""Scenes to train and test on: single things pasted over generated grounds, with all their labels."""
