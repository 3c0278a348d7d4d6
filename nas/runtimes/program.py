"""Networks as torch.export writes them (.pt2): a graph of operators and its weights, which runs without this project.

torch reads such files by unpickling, evaluating and calling what they name, so that a file may run any program. Those that are written
and read here have nothing of the kind: tensors as bytes, shapes as numbers, and operators of ATen.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.files import atomic_path
from nas.runtimes.batches import check_input
from nas.target import Target
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError

if TYPE_CHECKING:  # takes a second to import, which sessions of other files need not wait for
    from torch.export.pt2_archive import PT2ArchiveReader

__all__ = ["SUFFIX", "Program", "program_batch", "program_note", "read_program", "write_program"]

SUFFIX = ".pt2"
ARCH, BATCH = "arch.json", "batch"  # what is written beside the program: what it computes, and for how many images
LEGACY = "version"  # is in archives of a form that torch reads by unpickling

READ = ("models/", "data/", "extra/")  # the folders of an archive that torch reads
RECORD = re.compile(
    r"models/model\.json|data/(weights|constants)/(weight_\d+|tensor_\d+|model_\w+\.json)|data/sample_inputs/model\.pt|extra/\w+(\.json)?"
)
PICKLES = "data/sample_inputs/model.pt"  # is read by unpickling where it is not empty
NAME = re.compile(r"[\w.@]*")  # of tensors, weights and modules: torch makes source code of them
OPERATOR = re.compile(r"torch\.ops\.aten\.(?!__)\w+\.(?!__)\w+|_operator\.getitem")
STRUCTURE = re.compile(r"(builtins\.(tuple|list|dict)|null|type|context|children_spec|[\s\d\[\]{}:,\"\\])*")
RULES = {  # what strings may be, by the field that they are in; those of other fields are a `NAME`
    "target": OPERATOR,
    "in_spec": STRUCTURE,
    "out_spec": STRUCTURE,
    "as_string": re.compile(r"(?s).*"),  # a plain argument of an operator
    "torch_version": re.compile(r"[\w.+]*"),
}
RUN = (
    "expr_str",
    "guards_code",
    "metadata",
    "as_operator",
    "as_custom_obj",
)  # fields that are evaluated, or name what is called


class Program(nn.Module):
    """A network as a graph of operators, in eval mode for ever: images (batch, channels, H, W) -> logits (batch, classes)."""

    def __init__(self, graph: nn.Module, arch: Arch) -> None:
        super().__init__()
        self.graph, self.arch = graph, arch

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.graph(images)
        return logits

    def train(self, mode: bool = True) -> "Program":
        """Nothing: a graph has one mode, and torch refuses to be asked for another."""
        return self


def write_program(
    network: Network, example: Tensor, path: Path, notes: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Write `network` in eval mode as a program for inputs of the shape of `example` (B, C, H, W), and the `notes` beside it in the file."""
    program = torch.export.export(network.eval(), (example,))
    program.example_inputs = None  # which would be pickled
    for node in program.graph.nodes:
        node.meta = {name: value for name, value in node.meta.items() if name == "val"}  # not where it is in our source
    with atomic_path(path) as temporary:
        about = {ARCH: network.arch.to_json(), BATCH: str(len(example))}
        torch.export.save(program, temporary, extra_files={**notes, **about})
    return path


def read_program(path: Path, target: Target) -> Program:
    """The program in a file that `write_program` wrote.

    Raises:
        InputError: the file is missing or damaged, is not of this project, holds what torch would have to run to read it, or has another
            batch size; or the target is not of a CPU and fp32.
    """
    if (target.device, target.dtype) != ("cpu", "fp32"):
        raise InputError(f"{path} computes in fp32 on a CPU, and {target.name} does not; export it for another target")
    content = _content(path)
    arch, batch = _about(path, content)
    check_input(str(path), [("images", (batch, arch.channels, arch.image_size, arch.image_size))], target)
    try:
        graph: Any = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # torch raises a dozen unrelated types for a damaged file
        raise _damaged(path, error) from error
    graph.validate_inputs = False  # sessions give what `check_input` saw, and what checks them would be timed
    return Program(graph, arch)


def program_batch(path: Path) -> int:
    """The batch size that a program takes.

    Raises:
        InputError: as `read_program`.
    """
    return _about(path, _content(path))[1]


def program_note(path: Path, name: str) -> str | None:
    """What a program's file notes under a name; None where it says nothing.

    Raises:
        InputError: as `read_program`.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    content = _content(path)
    _about(path, content)
    reader = PT2ArchiveReader(io.BytesIO(content))
    known = f"extra/{name}" in reader.get_file_names()
    return str(reader.read_string(f"extra/{name}")) if known else None


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    return path.read_bytes()


def _about(path: Path, content: bytes) -> tuple[Arch, int]:
    """What a program computes and for how many images, once it is known that nothing runs when it is read."""
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            legacy = LEGACY in archive.namelist()
        reader = PT2ArchiveReader(io.BytesIO(content))
        reason = f"holds {LEGACY}" if legacy else _runs(reader)
        ours = {f"extra/{name}" for name in (ARCH, BATCH)} <= {*reader.get_file_names()}
    except Exception as error:  # torch raises a dozen unrelated types for a damaged file
        raise _damaged(path, error) from error
    if reason is not None:
        raise InputError(f"{path} {reason}, which might run any program when it is read; export the network again")
    if not ours:
        raise InputError(f"{path} does not say which network it holds; give a file that `nas export` wrote")
    batch = reader.read_string(f"extra/{BATCH}")
    if not batch.isdecimal():
        raise InputError(f"{path} takes batches of {batch!r}; export the network again")
    return Arch.from_json(reader.read_string(f"extra/{ARCH}")), int(batch)


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path} is not a whole program of torch.export ({reason}); export the network again")


def _runs(reader: "PT2ArchiveReader") -> str | None:
    """What of an archive torch would unpickle, evaluate or call, but operators of ATen; None where it is nothing."""
    names = [name for name in reader.get_file_names() if name.startswith(READ)]
    for name in names:
        if not RECORD.fullmatch(name) or (name == PICKLES and reader.read_bytes(name)):
            return f"holds {name}"
        if name.endswith(".json") and name.startswith(READ[:2]):
            strange = next(_strange(json.loads(reader.read_string(name))), None)
            if strange is not None:
                return f"says {strange} in {name}"
    return None


def _strange(value: Any, field: str = "") -> Iterator[str]:
    """What in a JSON value is no number, name or operator, or is to be unpickled; `field` is what it is the value of."""
    if (field in RUN and value) or (field == "use_pickle" and value is not False):
        yield f"{field} = {value!r:.80}"
    elif isinstance(value, str) and not RULES.get(field, NAME).fullmatch(value):
        yield f"{field} = {value!r:.80}"
    elif isinstance(value, list):
        for item in value:
            yield from _strange(item, field)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strange(name)
            yield from _strange(item, name)
