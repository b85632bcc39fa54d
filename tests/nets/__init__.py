"""Small networks as others write them, which the library was not made for."""
