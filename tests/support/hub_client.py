"""The real `huggingface_hub`, in a process of its own, since it reads its environment when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = """
import json, sys
import huggingface_hub
from huggingface_hub import HfFileSystem, hf_hub_download, snapshot_download  # for the expression
try:
    value = eval(sys.argv[1], globals(), json.loads(sys.argv[2]))
    print(json.dumps({"value": value, "error": None}))
except Exception as error:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    print(json.dumps({"value": None, "error": kinds, "message": str(error)}))
"""


@dataclass(frozen=True)
class RealClient:
    """Evaluates expressions of the real client's functions against one endpoint, with a cache below `home`."""

    endpoint: str | None
    home: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, expression: str, env: Mapping[str, str] | None = None, **names: Any) -> Any:
        """The value of `expression`, in which `names` may be used. Raises `Refusal` with what the client raised."""
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        quiet = dict.fromkeys(("TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK", "XET"), "1")
        settings = {f"HF_HUB_DISABLE_{name}": value for name, value in quiet.items()}
        place = {"HOME": str(self.home), "HF_HOME": str(self.home / "hf")}
        if self.endpoint:
            place["HF_ENDPOINT"] = self.endpoint
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, expression, json.dumps(names)],
            env={**kept, **settings, **place, **self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        if said["error"]:
            raise Refusal(said["error"], said["message"])
        return said["value"]

    def snapshot(self, repo: str, **arguments: Any) -> Path:
        """Where `snapshot_download` put it."""
        return Path(self("snapshot_download(repo, **arguments)", repo=repo, arguments=arguments))


class Refusal(Exception):
    """The real client raised. `kinds` are the names of the exception's class and of its bases."""

    def __init__(self, kinds: list[str], message: str) -> None:
        super().__init__(f"{kinds[0]}: {message}")
        self.kinds = kinds
