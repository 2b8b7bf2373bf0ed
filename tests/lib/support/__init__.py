"""What the tests of several rooms share; conftest.py of a room takes its fixtures from here."""
