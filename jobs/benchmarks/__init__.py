"""What `make bench` measures, one file a measurement: each beside a baseline that a competent user would write.

Everything is a ratio of two figures taken in turns (A B A B) within one run on one machine, so that it means the same
on another. Lines and facts are defined in `figures`, what all measurements share in `workbench`.
"""
