"""Values: how they travel and are stored, without changing type, and how they are looked at."""
