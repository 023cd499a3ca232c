"""What Gatehouse reads and writes: job specs, tap names, the store's layout. Nothing here computes features."""

__version__ = "0.1.0"
