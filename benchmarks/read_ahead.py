"""Which memory a compiled kernel both writes and reads ahead of time: it must be none.

Triton's pipeliner copies what a loop will load into shared memory some turns early (cp.async), and does not look
whether the same loop stores there: the copy would be of what stood there before. The interpreter, which runs loops in
order, cannot show it. Our kernels read back score gradients that they have written, so each compiled variant is looked
at, loop by loop: copies of a loop have come before the next one begins. What is looked for are such copies alone; loads
that are none stay where they stand in the loop.
Used by: benchmarks/resources.py. Tested by tests/benchmarks/test_read_ahead.py.
"""

import re

# A pointer's own source comes first among the operands of these; of a choice it may be the last two.
_POINTER_FIRST = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.bitcast", "ttg.convert_layout")
_RESULT = re.compile(r"\s*(%[\w-]+)(?::\d+)? = (?:\"?)([\w.]+)")
_CARRIED = re.compile(r"(%[\w-]+) = (%[\w-]+)(?:#\d+)?(?=[,)])")  # into a loop


def written_and_read_ahead(ttgir: str) -> set[str]:
    """Names of the arguments that a loop both stores through and copies ahead from, given a kernel's Triton GPU IR."""
    sources: dict[str, list[str]] = {}
    written: set[str] = set()
    ahead: set[str] = set()
    found: set[str] = set()
    regions: list[str] = []  # that are open, by the first word of what opened them
    for line in ttgir.splitlines():
        code = line.split(" loc(")[0].rstrip()
        if code.lstrip().startswith("}") and regions:
            regions.pop()
        if code.endswith("{"):
            regions.append("loop" if " scf.for " in f" {code}" or " scf.while " in f" {code}" else "other")
            if regions.count("loop") == 1 and regions[-1] == "loop":
                found |= written & ahead
                written, ahead = set(), set()
        result = _RESULT.match(code)
        operation = result[2] if result else code.split()[0] if code.split() else ""
        operands = re.findall(r"%[\w-]+", code[result.end() :] if result else code)
        if operation.startswith("scf.for"):
            sources |= {name: [first] for name, first in _CARRIED.findall(code)}
        elif result and operation in _POINTER_FIRST:
            sources[result[1]] = operands[:1]
        elif result and operation == "arith.select":
            sources[result[1]] = operands[1:]
        elif operation == "tt.store":
            written |= _arguments(operands[0], sources)
        elif operation == "ttg.async_copy_global_to_local":
            ahead |= _arguments(operands[0], sources)
    return found | written & ahead


def _arguments(pointer: str, sources: dict[str, list[str]]) -> set[str]:
    """What the pointer was made from, by what has been read so far: a later loop may use its names again."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [pointer]
    while waiting:
        pointer = waiting.pop()
        if pointer in seen:
            continue
        seen.add(pointer)
        if pointer in sources:
            waiting += sources[pointer]
        else:
            found.add(pointer.removeprefix("%"))
    return found
