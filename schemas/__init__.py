"""What Gatehouse reads and writes: job specs, tap names, the store's layout. Nothing here computes features."""
