"""PTX text as a list of instructions, for machine.py to run.

What: the subset that Triton's compiler writes: one kernel, no functions, no declarations but registers, parameters and
arrays of shared memory (PTX ISA 9.0, sections 4 and 6).
Used by: launch.py. Tested by: tests/ptx/test_machine.py.
Not here: what an instruction does (arithmetic.py, memory.py, tensor_cores.py, machine.py).
"""

import re
from dataclasses import dataclass

INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)(?P<predicate>%\w+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.S
)
LABEL = re.compile(r"^\s*(\$\w+):", re.M)
SHARED_ARRAY = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\];")
TRITONS_ARRAY = "global_smem"  # whose size the launch says


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@predicate name.of.parts operands`, a vector operand being a tuple."""

    parts: tuple[str, ...]
    operands: tuple["str | tuple[str, ...]", ...]
    predicate: str = ""
    is_negated: bool = False

    def __str__(self) -> str:
        return f"{'.'.join(self.parts)} {', '.join(map(str, self.operands))}"


@dataclass(frozen=True)
class Program:
    """A kernel: its instructions, where its labels point, the names of its parameters in order.

    shared_bytes: of the shared memory that it declares; Triton's own comes behind it, as on a GPU.
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[str, ...]
    shared_bytes: int


def parse(ptx: str) -> Program:
    """The kernel of a module."""
    text = re.sub(r"//.*", "", ptx)
    head, _, body = text[text.index(".entry") :].partition("{")
    body = body[: body.index(".section")] if ".section" in body else body
    body = re.sub(r"^\s*\.(?:loc|file|pragma)\b.*$|\.reg\b[^;]*;", "", body, flags=re.M)
    body, shared_bytes = _place_arrays(body)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in LABEL.sub(r"\1:;", body).split(";"):
        statement = statement.lstrip("{} \t\n").rstrip()
        if statement.startswith("$"):
            labels[statement.removesuffix(":")] = len(instructions)
        elif statement:
            instructions.append(_parse_instruction(statement))
    return Program(tuple(instructions), labels, tuple(re.findall(r"(\w+_param_\d+)", head)), shared_bytes)


def _place_arrays(body: str) -> tuple[str, int]:
    """The text with addresses for the names of shared arrays, and the bytes that it declares."""
    start = 0
    for declared in SHARED_ARRAY.finditer(body):
        name, size = declared.groups()
        body = re.sub(rf"\b{name}\b(?!\[)", str(start), body)
        start += int(size)
    return re.sub(rf"\b{TRITONS_ARRAY}\b", str(start), SHARED_ARRAY.sub("", body)), start


def _parse_instruction(statement: str) -> Instruction:
    found = INSTRUCTION.fullmatch(statement)
    if found is None:
        raise ValueError(f"not an instruction that is known: {statement!r}")
    return Instruction(
        parts=tuple(found["opcode"].replace("::", ":").split(".")),
        operands=tuple(_parse_operand(text) for text in _split(found["operands"])),
        predicate=found["predicate"] or "",
        is_negated=bool(found["negated"]),
    )


def _split(operands: str) -> list[str]:
    """At the commas that are not inside of braces."""
    return [text.strip() for text in re.split(r",(?![^{]*})", operands)] if operands.strip() else []


def _parse_operand(text: str) -> str | tuple[str, ...]:
    if text.startswith("{"):
        return tuple(name.strip() for name in text.strip("{}").split(","))
    return re.sub(r"[\[\]\s]", "", text)
