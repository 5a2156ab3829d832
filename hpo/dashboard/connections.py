"""Connections of the dashboard: however many are left hanging, others are answered.

waitress accepts no connection beyond a limit, and closes one only if it is silent for two minutes.
So anyone who sends requests a letter at a time, before any login, would keep all others out. Here
the connection that has waited longest for a whole request makes room for a new one.
"""

import time
from typing import Any

from waitress.channel import HTTPChannel

# Open connections on one address. A browser has six at most.
MOST_CONNECTIONS = 100


class Connection(HTTPChannel):  # type: ignore[misc]
    """A connection that is closed for a new one if there are too many, and it waits longest."""

    # When it was made, or when its last whole request arrived, in seconds.
    waiting_since = 0.0

    def add_channel(self, map: dict[int, Any] | None = None) -> None:
        """Called by waitress when the connection was made."""
        self.waiting_since = time.monotonic()
        waiting = [other for other in self.server.active_channels.values() if not other.requests]
        if len(self.server.active_channels) >= MOST_CONNECTIONS and waiting:
            longest = min(waiting, key=lambda other: other.waiting_since)
            # The server's own thread closes it in its next round.
            longest.will_close = True
        super().add_channel(map)

    def received(self, data: bytes) -> bool:
        """Called by waitress with what has arrived."""
        was_taken = bool(super().received(data))
        if self.requests:
            self.waiting_since = time.monotonic()
        return was_taken
