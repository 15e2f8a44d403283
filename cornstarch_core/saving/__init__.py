"""Saving and loading composed models."""
