"""What a fork server loads last: it ends without taking torch apart, and Ctrl-C is none of its workers' business until they work."""

import atexit
import os
import signal
import sys

# Whatever else imports this file has work to do at its end.
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    # Taking torch apart takes seconds of a core, on a busy machine more than ten.
    # Registered last, so called first. Workers are forked later, end by os._exit, and call none of it.
    atexit.register(os._exit, 0)
    # Workers are born with this: one that Ctrl-C reaches before its first job has nothing to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
