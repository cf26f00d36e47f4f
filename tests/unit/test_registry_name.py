"""The name grammar of `ollama://`: Ollama's own vectors, and any text at all."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelstore.registry.name import Name

EIGHTY = "8" * 80
HOST = "3" * 350


def parts(text: str) -> tuple[str, str, str, str]:
    name = Name.parse(text)
    return name.host, name.namespace, name.model, name.tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_why/_the/_lucky:_stiff", ("_why", "_the", "_lucky", "_stiff")),
        ("h/n/m:t", ("h", "n", "m", "t")),
        ("host/namespace/model:tag", ("host", "namespace", "model", "tag")),
        ("host:https/namespace/model:tag", ("host:https", "namespace", "model", "tag")),
        ("host:5000/namespace/model:tag", ("host:5000", "namespace", "model", "tag")),
        ("host:5000/namespace/model", ("host:5000", "namespace", "model", "latest")),
        ("127.0.0.1:5000/n/m", ("127.0.0.1:5000", "n", "m", "latest")),
        ("a./n/m:t", ("a.", "n", "m", "t")),
        ("a.b/n/m:t", ("a.b", "n", "m", "t")),
        ("a:123/n/m:t", ("a:123", "n", "m", "t")),
        (f"{EIGHTY}/{EIGHTY}/{EIGHTY}:{EIGHTY}", (EIGHTY, EIGHTY, EIGHTY, EIGHTY)),
        (f"{HOST}/n/m:t", (HOST, "n", "m", "t")),
        # what is left out
        ("xx", ("registry.ollama.ai", "library", "xx", "latest")),
        ("model", ("registry.ollama.ai", "library", "model", "latest")),
        ("model:tag", ("registry.ollama.ai", "library", "model", "tag")),
        ("namespace/model", ("registry.ollama.ai", "namespace", "model", "latest")),
        ("host/namespace/model", ("host", "namespace", "model", "latest")),
        # as people write them
        ("llama3.2:1b-instruct-q4_K_M", ("registry.ollama.ai", "library", "llama3.2", "1b-instruct-q4_K_M")),
        ("hf.co/Bartowski/Llama-3.2-1B-Instruct-GGUF:IQ3_M",
         ("hf.co", "Bartowski", "Llama-3.2-1B-Instruct-GGUF", "IQ3_M")),
        ("hf.co/u/m:Llama-3.2-3B-Instruct-IQ3_M.gguf", ("hf.co", "u", "m", "Llama-3.2-3B-Instruct-IQ3_M.gguf")),
        # more parts than Ollama has: a repository of any other registry
        ("ghcr.io/org/team/model:v1", ("ghcr.io", "org/team", "model", "v1")),
        # and fewer, where what is first can only be a host
        ("registry:5000/model:v1", ("registry:5000", "", "model", "v1")),
        ("registry.example/model", ("registry.example", "", "model", "latest")),
        ("docker.io/model", ("docker.io", "library", "model", "latest")),
        ("registry:5000/a/b/c/d", ("registry:5000", "a/b/c", "d", "latest")),
    ],
)  # fmt: skip
def test_names(text: str, expected: tuple[str, str, str, str]) -> None:
    assert parts(text) == expected
    host, namespace, model, tag = expected
    full = "/".join(filter(None, (host, namespace, model))) + f":{tag}"
    assert str(Name.parse(text)) == full
    assert parts(full) == expected


BAD = r"""
@t m@d n/m: ^ mm: /nn/mm // hh// //mm:@ 00@ : / :t m:/ m:t/
-hh/nn/mm:tt hh/-nn/mm:tt hh/nn/-mm:tt hh/nn/mm:-tt
host/name:space/model:tag h/a:b/m:t h/a./m:t -h h/n/-h
.. . ../../model/tag h/../m:t h/n/..:t h/n/m:.. ./././. h/n/./m h/./n/m h/../n/m ~/m .hidden m:.hidden
h//m h/n//m h/n/m// /h/n/m:t h/n/m:t/ h\n\m h/n/m:t\.. h/n/..%2fm h/n%2f..%2fm h/n/m%00
h/n/m:t?x=y h/n/m:t#f user@h/n/m user:pw@h/n/m h/n/m;t h/n/m&t [::1]/n/m m@sha256:00 é
""".split()
LONG = ["8" * 81, "m:" + "8" * 81, "8" * 81 + "/m", "3" * 351 + "/n/m:t"]
UNSEEN = [
    "",
    "h/n/m\0",
    "h/n/m\n",
    "m:t\n",
    "m\n:t",
    "m ",
    " m",
    "m:t\r",
    "h/n/\uff4d",
    "m:t\u0661",
    "m\u212a",
    "m\udcff",
]


@pytest.mark.parametrize("text", [*BAD, *LONG, *UNSEEN], ids=ascii)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError):
        Name.parse(text)


def test_case_is_kept() -> None:
    assert str(Name.parse("HF.co/User/Model-GGUF:Q4_K_M")) == "HF.co/User/Model-GGUF:Q4_K_M"


def test_equal_names_are_equal_values() -> None:
    assert Name.parse("m") == Name.parse("registry.ollama.ai/library/m:latest")
    assert len({Name.parse("m"), Name.parse("library/m"), Name.parse("M")}) == 2


PIECES = st.sampled_from(["a", "9", *"_-./:@\\\0\n é?#", "..", "//", "%2e"])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
@example("a/b/c/d/e:f")
@example("a:b/c:d/e:f")
@example("..:..")
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = Name.parse(text)
    except ValueError:
        return
    assert Name.parse(str(name)) == name
    assert str(name) == "/".join(filter(None, (name.host, name.namespace, name.model))) + f":{name.tag}"
    assert str(name).endswith(text) or str(name).endswith(f"{text}:latest"), "nothing but defaults was added"
    spaces = name.namespace.split("/") if name.namespace else []
    names = [name.host, *spaces, name.model, name.tag]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", part) for part in names)
    assert not any(":" in part for part in names[1:])
    assert len(name.host) <= 350
    assert all(len(part) <= 80 for part in (name.model, name.tag))
    assert len(spaces) != 1 or re.fullmatch(r"[\w-]{1,80}", name.namespace, re.ASCII), "as Ollama has it"
