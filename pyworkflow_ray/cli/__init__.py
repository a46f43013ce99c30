"""The command line `pyworkflow-ray`, also `python -m pyworkflow_ray`."""
