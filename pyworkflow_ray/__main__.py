"""`python -m pyworkflow_ray` is the command line `pyworkflow-ray`."""

from pyworkflow_ray.cli.app import main

if __name__ == "__main__":
    main()
