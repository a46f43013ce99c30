"""Recurrences: when a schedule fires."""
