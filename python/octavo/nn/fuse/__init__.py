"""Whole models: what one kernel can do of several operations."""
