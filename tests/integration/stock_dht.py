"""Run by test_bootstrap.py: a stock hivemind.DHT, nothing of Waggle in it. Arguments: store|get FOLDER MADDRS..."""

from __future__ import annotations

import sys

import hivemind
from hivemind.utils import get_dht_time


def main() -> None:
    what, _, *initial_peers = sys.argv[1:]
    dht = hivemind.DHT(initial_peers=initial_peers, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    try:
        if what == "store":
            kept = dht.store("greeting", "a value through Waggle", expiration_time=get_dht_time() + 300)
            print("stored" if kept else "nobody took it", flush=True)
        else:
            found = dht.get("greeting", latest=True)
            print("got", found.value if found else None, flush=True)
    finally:
        dht.shutdown()


if __name__ == "__main__":
    main()
