"""What a fork server loads last, so that it ends without taking torch apart: that takes seconds of a core, on a busy machine more than ten."""

import atexit
import os
import sys

# Whatever else imports this file has work to do at its end.
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    # Registered last, so called first. Workers are forked later, end by os._exit, and call none of it.
    atexit.register(os._exit, 0)
