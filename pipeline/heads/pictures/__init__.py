"""What is drawn of heads: plots, and sheets of pictures with what a head says of them."""
