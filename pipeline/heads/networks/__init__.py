"""Networks of heads, plain torch: maps in, predictions out."""
