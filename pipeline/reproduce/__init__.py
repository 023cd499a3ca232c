"""The paper's experiments, from a public data set to a table: recipes as data, and the specs of the jobs that do it.

Nothing here computes a feature or trains a head. `jobs.reproduce` writes the specs into a work folder and runs them in
turn; each can be read, changed and run by hand as well.
"""
