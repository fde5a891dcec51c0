"""A server whose generator makes noise, in a process of its own: python -m tests.serve.load_server FOLDER."""

import asyncio
import socket
import sys
from pathlib import Path

from tests.serve.serving import make_service, quick
from vdit.serve.app import make_app
from vdit.serve.server import make_server

if __name__ == "__main__":
    service = make_service(Path(sys.argv[1]), quick(pause=0.02), waiting=1000, waiting_per_client=1000)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        asyncio.run(make_server(make_app(service), limits=service.limits).serve(sockets=[listening]))
