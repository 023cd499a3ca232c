"""GATE: measures content shift, and selects the techniques that suppress it."""
