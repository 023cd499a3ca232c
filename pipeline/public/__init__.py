"""Public data sets, as their authors publish them, to shards with labels."""
