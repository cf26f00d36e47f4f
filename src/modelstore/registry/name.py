"""The names of models in registries: Ollama's grammar (github.com/ollama/ollama, types/model/name.go)."""

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Name"]

_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
#: The part of an OCI repository's name that Ollama has no place for (distribution-spec, "Pulling manifests").
_MORE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LOCAL: Final = re.compile(r"(localhost|127(\.\d{1,3}){3})(:\d+)?")
#: Docker's registry does not answer under the name that everybody writes.
_DOCKER: Final = ("docker.io", "index.docker.io")


@dataclass(frozen=True, slots=True)
class Name:
    """``[host/][namespace/]model[:tag]``, with what was left out filled in as Ollama does.

    ``namespace`` may have several parts in registries that are not Ollama's, and be empty there.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Read a name. Raises :class:`ValueError`."""
        rest, tag = text, "latest"
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        *others, model = rest.split("/")
        host, namespace = "registry.ollama.ai", "library"
        if len(others) == 1 and re.search(r"[.:]", others[0]):
            host, namespace = others[0], ""
        elif len(others) == 1:
            namespace = others[0]
        elif others:
            host, namespace = others[0], "/".join(others[1:])
        if host in _DOCKER and not namespace:
            namespace = "library"
        name = cls(host, namespace, model, tag)
        if "" in others or not name._is_valid:
            raise ValueError(f"{text!r:.200} is not the name of a model")
        return name

    @property
    def _is_valid(self) -> bool:
        parts = self.namespace.split("/") if self.namespace else []
        each = _NAMESPACE if len(parts) == 1 else _MORE
        return bool(
            _HOST.fullmatch(self.host)
            and all(each.fullmatch(part) for part in parts)
            and _MODEL.fullmatch(self.model)
            and _MODEL.fullmatch(self.tag)
        )

    @property
    def repository(self) -> str:
        """The name as the registry has it."""
        return f"{self.namespace}/{self.model}" if self.namespace else self.model

    @property
    def address(self) -> str:
        """The host, and perhaps port, that answers."""
        return "registry-1.docker.io" if self.host in _DOCKER else self.host

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine: then, as for Docker, without TLS."""
        return bool(_LOCAL.fullmatch(self.host))

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"
