"""The storm: random workflow programs, faults thrown at them, and a check of every promise."""
