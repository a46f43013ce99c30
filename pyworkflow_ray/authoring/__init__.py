"""Authoring: what users write workflows with."""
