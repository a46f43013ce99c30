"""Engine: a run as a pure function of its history."""
