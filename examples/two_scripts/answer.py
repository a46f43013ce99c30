"""The second of two scripts: answers the orders that `start.py` has placed, in a process of its own.

What it sends is an object of a class of the local module `orders.py`, and what it catches is an exception of
that module. They are the same classes in each process, because local code travels with a run as source.
"""

from orders import Answer, Decision, DeclinedError

from pyworkflow_ray import RunHandle, run_sync

if __name__ == "__main__":
    for order, decision in (("A-17", Decision.APPROVED), ("A-18", Decision.DECLINED)):
        run: RunHandle[str] = RunHandle(f"order-{order}")
        run_sync(run.signal("answer", Answer(decision, by="Ada")))
        try:
            print(run.wait(timeout=60))
        except DeclinedError as error:
            print(f"DeclinedError: {error}")
