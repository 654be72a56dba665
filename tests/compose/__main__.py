"""Runs the checks of a fleet in containers: all, or those named. Exit 1 at the first that fails, with the logs."""

import argparse
import asyncio
import signal
import sys
import time

import checks
from fleet import Fleet

ALL = [
    checks.up_from_nothing,
    checks.the_second_up_is_quick,
    checks.every_way_of_asking,
    checks.two_hundred_chats_while_scaling,
    checks.down_drains,
    checks.redis_gone,
    checks.nats_late,
    checks.nats_emptied,
    checks.models_missing,
    checks.port_taken,
    checks.little_memory,
    checks.a_cluster_loses_a_server,
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", metavar="DIR", help="a folder with models, in place of an empty volume")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(check.__name__ for check in ALL))
    return parser.parse_args()


def run(fleet, chosen):
    for check in chosen:
        start = time.monotonic()
        print(f"  {check.__name__} ...", flush=True)
        said = asyncio.run(check(fleet))
        print(f"  {check.__name__}: {said} [{time.monotonic() - start:.0f} s]", flush=True)


def main():
    given = arguments()
    chosen = [check for check in ALL if not given.checks or check.__name__ in given.checks]
    unknown = set(given.checks) - {check.__name__ for check in chosen}
    if unknown:
        raise SystemExit(f"no such check: {', '.join(sorted(unknown))}")
    # Stopped from outside, it still takes its containers away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    fleet = Fleet(given.models)
    fleet.remove()
    try:
        if given.checks and checks.up_from_nothing not in chosen:
            fleet.up()
            asyncio.run(checks.ready(fleet))
        run(fleet, chosen)
    except BaseException:
        print(fleet.compose("ps", check=False).stdout)
        for service in ("dispatcher", "worker", "models", "nats"):
            print(fleet.compose("logs", "--no-color", "--tail", "40", service, check=False).stdout)
        raise
    finally:
        fleet.remove()


main()
