"""What writes the update: places, the values that they read, and nodes of several stages."""
