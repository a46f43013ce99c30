"""The first of two scripts: places two orders, and ends. The orders wait for `answer.py`.

Run ``python start.py``, then ``python answer.py`` in the same folder.
"""

from orders import place_order

from pyworkflow_ray import start_sync

if __name__ == "__main__":
    for order in ("A-17", "A-18"):
        run = start_sync.options(run_id=f"order-{order}")(place_order, order)
        print(f"{run} waits for an answer")
