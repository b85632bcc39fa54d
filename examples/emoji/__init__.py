"""A small text-to-image model of emoji, trained from scratch: see README.md."""
