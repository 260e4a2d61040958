"""Models in the forms that others read."""
