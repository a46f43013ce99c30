"""Client: start runs, wait for them, look at them, from any process."""
