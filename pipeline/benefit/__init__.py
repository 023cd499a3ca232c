"""Whether suppressing content shift pays: heads on stored features, with techniques and without; see `jobs.benefit`."""
