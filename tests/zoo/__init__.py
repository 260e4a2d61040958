"""Models of other people's packages, tiny and with random weights, for tests/test_zoo.py."""
