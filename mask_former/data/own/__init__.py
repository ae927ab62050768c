"""A user's own data: what lies in a folder, found, checked and registered."""
