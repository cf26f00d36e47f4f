"""A private nginx in the foreground: one directory on a free port of 127.0.0.1, whatever it writes in `work`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
daemon off;
master_process off;
pid "{work}/nginx.pid";
events {{ worker_connections 256; }}
http {{
  default_type application/octet-stream;
  sendfile on;
  access_log "{work}/access.log";
  client_body_temp_path "{work}/body";
  proxy_temp_path "{work}/proxy";
  fastcgi_temp_path "{work}/fastcgi";
  uwsgi_temp_path "{work}/uwsgi";
  scgi_temp_path "{work}/scgi";
  server {{
    listen 127.0.0.1:{port};
    root "{root}";
  }}
}}
"""


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def serve(program: str, root: Path, work: Path) -> Iterator[str]:
    """Serve `root` and give the base URL, without a slash at its end."""
    for _ in range(10):
        port = _free_port()
        config = work / "nginx.conf"
        config.write_text(CONFIG.format(work=work, root=root, port=port))
        with (work / "stderr.log").open("wb") as log:
            command = [program, "-p", str(work), "-e", "stderr", "-c", str(config)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if _started(process, work / "nginx.pid"):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            process.wait(10)
    raise RuntimeError("nginx did not start:\n" + (work / "stderr.log").read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(process: subprocess.Popen[bytes], pid_file: Path) -> bool:
    """True once it listens, which is when it writes its pid; False when it gave up (somebody else got the port)."""
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        if pid_file.is_file() and pid_file.read_text().strip() == str(process.pid):
            return True
        time.sleep(0.01)
    return False
