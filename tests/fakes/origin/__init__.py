"""An HTTP origin that lies, breaks off and waits exactly as told, and counts what it sends.

`faults` names what it can do wrong, `files` what it serves, `replies` decides what goes out for
a request (plain values, no I/O), `server` sends that over sockets of its own.
"""

from fakes.origin.faults import Fault
from fakes.origin.files import FIRST_BYTE, OLD, File, just_now
from fakes.origin.server import Origin

__all__ = ["FIRST_BYTE", "OLD", "Fault", "File", "Origin", "just_now"]
