"""Process of a simulated unit: answers the calls of :class:`moska.sim.transport.SimTransport`.

Run as ``python -m moska.sim.server SOCKET MEMORY`` with two inherited file descriptors. Messages
are pickled. The first one holds what the device is made of; each one after it is a name and
arguments. Answers are whether it went well, and a value or the exception. ``WAKE`` has no answer:
it ends a ``wait``, the one under way or the next one.
"""

import mmap
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from moska.gen.config import Config
from moska.sim.device import Device
from moska.sim.transport import WAKE

SLICE_CYCLES = 500  # between two looks at the clock and at the socket


class Server:
    """One device, and the socket that its calls come from."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.device: Device | None = None
        self.woken = False

    def start(self, memory: np.ndarray) -> bool:
        """Make the device that the first message describes; return whether that went well."""
        parameters, timing, options = self.connection.recv()

        def make() -> None:
            self.device = Device(Config.from_dict(parameters), memory=memory, **options)
            self.device.timing(**timing)

        return self._answer(make)

    def serve(self) -> None:
        """Answer calls until the other side hangs up."""
        while True:
            try:
                message = self.connection.recv()
            except EOFError:
                return
            if message == WAKE:
                self.woken = True
            else:
                name, arguments = message
                self._answer(lambda n=name, a=arguments: self._call(n, a))

    def wait(self, seconds: float) -> bool:
        """Simulate until the interrupt is high, a message comes or time is over."""
        end = time.monotonic() + seconds
        while not (
            self.device.interrupt or self.woken or self.connection.poll() or time.monotonic() > end
        ):
            self.device.run(SLICE_CYCLES)
        self.woken = False
        return self.device.interrupt

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "wait":
            return self.wait(**arguments)
        attribute = getattr(self.device, name)
        return attribute(**arguments) if callable(attribute) else attribute

    def _answer(self, action: Callable[[], Any]) -> bool:
        try:
            good, value = True, action()
        except Exception as error:  # told to the other side
            good, value = False, error
        self.connection.send((good, value))
        return good


def main() -> None:
    """Serve one device."""
    socket, memory_file = (int(argument) for argument in sys.argv[1:])
    server = Server(Connection(socket))
    if server.start(np.frombuffer(mmap.mmap(memory_file, 0), dtype=np.uint8)):
        # Ctrl-C is for the process that talks to the user; it hangs up when it ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.serve()
        server.device.close()


if __name__ == "__main__":
    main()
