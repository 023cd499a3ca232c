"""The jobs: what a command line or `ray job submit` starts. Only wiring; nothing imports this package."""
