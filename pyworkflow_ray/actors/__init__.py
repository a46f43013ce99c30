"""Actors: plain classes made remote in the last lines of their files."""
