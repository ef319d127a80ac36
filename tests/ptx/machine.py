"""A machine that runs one block of a PTX program on a CPU, warp by warp.

What: a warp runs alone until it waits at a barrier, then another, in an order drawn anew at every barrier. So whoever
reads what another warp wrote without a barrier between reads the old value in some orders, and whoever overwrites what
others still read does it too early in some. Copies in flight (cp.async) take place when issued or when waited for, as
chance has it. A register that nothing was written to holds any number. A program without races gives the same bits
whatever the chances.
Memory is that of memory.py: an address outside of the launch's tensors is an error.
Used by: launch.py. Tested by: tests/ptx/test_machine.py.
Not here: time; caches; the order of stores as other warps see it (they see them at once); warps whose lanes part.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import numpy as np

from tests.ptx import tensor_cores
from tests.ptx.arithmetic import BITS, LANES, Lanes, bits_of, meaning_of, numbers_of
from tests.ptx.memory import GlobalMemory, Memory
from tests.ptx.program import Instruction, Program

DONE = -1  # a program counter
ALL = np.ones(LANES, dtype=np.bool_)
NOTHING_TO_DO = {
    ("bar", "warp"), ("fence", "proxy"), ("wgmma", "fence"), ("wgmma", "commit_group"), ("wgmma", "wait_group")
}  # fmt: skip


@dataclass(eq=False)
class Block:
    """What the warps of a block share."""

    index: tuple[int, ...]
    grid: tuple[int, ...]
    num_threads: int
    parameters: dict[str, int]
    memory: GlobalMemory
    shared: Memory
    chance: Random


@dataclass(eq=False)
class Warp:
    """32 lanes: their registers, what they do next, and their copies in flight by commit group, the last group open."""

    block: Block
    number: int
    registers: dict[str, Lanes] = field(default_factory=dict)
    counter: int = 0
    in_flight: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])

    def read(self, operand: str, kind: str) -> Lanes:
        """An operand's bits, as many as the type has."""
        if operand[0] != "%":
            return _constant(operand, kind)
        value = self.registers.get(operand)
        if value is None:
            value = self._unwritten(operand, kind)
        return value.astype(BITS[kind], copy=False)

    def _unwritten(self, name: str, kind: str) -> Lanes:
        """A special register, or one that holds anything."""
        special, _, axis = name[1:].partition(".")
        place = "xyz".index(axis) if axis else 0
        if special == "tid":
            return np.zeros(LANES, np.uint32) if place else self.number * LANES + np.arange(LANES, dtype=np.uint32)
        block = self.block
        whole = {"ctaid": block.index, "nctaid": block.grid, "ntid": (block.num_threads, 1, 1)}
        if special in whole:
            return np.full(LANES, whole[special][place], np.uint32)
        return np.full(LANES, block.chance.getrandbits(8 * np.dtype(BITS[kind]).itemsize)).astype(BITS[kind])

    def write(self, name: str, bits: Lanes, active: Lanes) -> None:
        """Set a register in the active lanes; `_` is nowhere."""
        if name == "_":
            return
        before = self.registers.get(name)
        if active is not ALL and before is not None:
            bits = np.where(active, bits, before)
        self.registers[name] = bits

    def addresses(self, operand: str) -> Lanes:
        """int64 [32] of `register`, `register+offset` or `address+offset`."""
        base, _, offset = operand.partition("+")
        start = self.registers[base].astype(np.int64) if base[0] == "%" else np.full(LANES, int(base))
        return start + int(offset or "0", 0)


Step = Callable[[Warp, Lanes], Any]
"""Does an instruction in a warp's active lanes; true where the warp then has to wait."""


class Machine:
    """A program made ready to be run."""

    def __init__(self, program: Program) -> None:
        self._parameters = program.parameters
        self._steps = [(self._step(each, program), each) for each in program.instructions]

    def run(
        self,
        index: tuple[int, ...],
        grid: tuple[int, ...],
        num_warps: int,
        values: Sequence[int],
        memory: GlobalMemory,
        shared: Memory,
        chance: Random,
    ) -> None:
        """Run one block. values: the bits of each parameter; those past the last are 0."""
        given = dict.fromkeys(self._parameters, 0) | dict(zip(self._parameters, values, strict=False))
        block = Block(index, grid, num_warps * LANES, given, memory, shared, chance)
        warps = [Warp(block, number) for number in range(num_warps)]
        while True:
            for warp in chance.sample(warps, num_warps):
                self._run_to_barrier(warp)
            places = {warp.counter for warp in warps}
            if places == {DONE}:
                return
            if len(places) > 1:
                raise RuntimeError(f"warps wait at different barriers: instructions {sorted(places)}")

    def _run_to_barrier(self, warp: Warp) -> None:
        waits = False
        while not waits:
            step, instruction = self._steps[warp.counter]
            warp.counter += 1
            active = ALL
            if instruction.predicate:
                active = warp.registers[instruction.predicate]
                active = ~active if instruction.is_negated else active
                if not active.any():
                    continue
            try:
                waits = step(warp, active)
            except Exception as error:
                error.add_note(f"in warp {warp.number} of block {warp.block.index}: {instruction}")
                raise

    def _step(self, instruction: Instruction, program: Program) -> Step:
        parts, operands = instruction.parts, instruction.operands
        match parts:
            case ("bar", "sync"):
                if operands != ("0",):
                    raise NotImplementedError(f"a barrier of some warps: {instruction}")
                return lambda warp, active: True
            case ("ret",):
                return _end
            case ("bra", *_):
                return partial(_branch, program.labels[str(operands[0])])
            case ("mov", kind) if any(isinstance(operand, tuple) for operand in operands):
                return partial(_unpack if isinstance(operands[0], tuple) else _pack, *operands, kind)
            case ("mov", kind):
                return partial(_move, *operands, kind)
            case ("shfl", "sync", how, "b32"):
                return partial(_shuffle, how, *operands)
            case ("redux", "sync", how, kind):
                return partial(_reduce, how, *operands, kind)
            case ("ld", "param", *_, kind):
                return partial(_load_parameter, *operands, kind)
            case ("ld", space, *_, kind):
                return partial(_load, space, *operands, kind)
            case ("st", space, *_, kind):
                return partial(_store, space, *operands, kind)
            case ("cp", "async", "commit_group"):
                return lambda warp, active: warp.in_flight.append([])
            case ("cp", "async", "wait_group" | "wait_all"):
                return partial(_wait_for_copies, int(str(operands[0])) if operands else 0)
            case ("cp", "async", *_):
                return partial(_copy, *operands)
            case ("ldmatrix", *_):
                return partial(_load_matrices, *operands, "trans" in parts)
            case ("stmatrix", *_):
                return partial(_store_matrices, *operands, "trans" in parts)
            case ("mma", "sync", "aligned", _, "row", "col", "f32", kind, _, "f32"):
                return partial(_multiply, *operands, kind)
            case ("wgmma", "mma_async", "sync", "aligned", shape, "f32", kind, _):
                return partial(_multiply_in_group, int(shape[4 : shape.index("k")]), kind, operands)
        if parts[:2] in NOTHING_TO_DO:
            return lambda warp, active: False
        meaning = meaning_of(parts)
        if meaning is None:
            raise NotImplementedError(f"an instruction that the machine does not know: {instruction}")
        return partial(_compute, meaning.function, meaning.sources, meaning.result, operands)


@functools.cache
def _constant(text: str, kind: str) -> Lanes:
    number = int(text[2:], 16) if text[:2] in ("0f", "0d") else int(text.removesuffix("U"), 0)
    bits = np.dtype(BITS[kind]).itemsize * 8
    return np.full(LANES, number % (1 << bits), dtype=BITS[kind])


def _end(warp: Warp, _active: Lanes) -> bool:
    warp.counter = DONE
    return True


def _branch(target: int, warp: Warp, active: Lanes) -> bool:
    if not active.all():
        raise NotImplementedError("lanes of a warp that part at a branch")
    warp.counter = target
    return False


def _compute(
    function: Callable[..., Lanes], sources: Sequence[str], result: str, operands: Any, warp: Warp, active: Lanes
) -> None:
    numbers = [numbers_of(warp.read(name, kind), kind) for name, kind in zip(operands[1:], sources, strict=True)]
    warp.write(operands[0], bits_of(function(*numbers), result), active)


def _move(target: str, source: str, kind: str, warp: Warp, active: Lanes) -> None:
    warp.write(target, warp.read(source, kind), active)


def _pack(target: str, sources: tuple[str, ...], kind: str, warp: Warp, active: Lanes) -> None:
    width = np.dtype(BITS[kind]).itemsize * 8 // len(sources)
    parts = [warp.read(name, f"b{width}") for name in sources]
    warp.write(target, np.stack(parts, axis=-1).view(BITS[kind])[:, 0], active)


def _unpack(targets: tuple[str, ...], source: str, kind: str, warp: Warp, active: Lanes) -> None:
    width = np.dtype(BITS[kind]).itemsize * 8 // len(targets)
    words = np.ascontiguousarray(warp.read(source, kind)).view(BITS[f"b{width}"])
    for name, word in zip(targets, words.reshape(LANES, -1).T, strict=True):
        warp.write(name, np.ascontiguousarray(word), active)


def _shuffle(how: str, target: str, source: str, by: str, limit: str, _mask: str, warp: Warp, active: Lanes) -> None:
    """A value of another lane, or one's own where that lane is past the limit (section 9.7.9.6)."""
    lanes, distance = np.arange(LANES), warp.read(by, "u32").astype(np.int64)
    segment, last = (int(warp.read(limit, "u32")[0]) >> shift & 31 for shift in (8, 0))
    farthest = lanes & segment | last & ~segment
    others = {
        "up": lanes - distance,
        "down": lanes + distance,
        "bfly": lanes ^ distance,
        "idx": lanes & segment | distance & ~segment,
    }[how]
    is_there = others >= farthest if how == "up" else others <= farthest
    value = warp.read(source, "b32")
    warp.write(target, value[np.where(is_there, others, lanes)], active)


def _reduce(how: str, target: str, source: str, members: str, kind: str, warp: Warp, active: Lanes) -> None:
    mask = warp.read(members, "u32")[0] >> np.arange(LANES, dtype=np.uint32) & 1
    numbers = numbers_of(warp.read(source, kind), kind)[mask.astype(np.bool_)]
    function = {"min": np.min, "max": np.max, "add": np.sum}[how]
    warp.write(target, np.full(LANES, bits_of(function(numbers), kind)), active)


def _load_parameter(target: str, name: str, kind: str, warp: Warp, active: Lanes) -> None:
    value = warp.block.parameters[name] % (1 << 8 * np.dtype(BITS[kind]).itemsize)
    warp.write(target, np.full(LANES, value, BITS[kind]), active)


def _memory(space: str, warp: Warp) -> GlobalMemory | Memory:
    return {"global": warp.block.memory, "shared": warp.block.shared}[space]


def _load(space: str, targets: Any, source: str, kind: str, warp: Warp, active: Lanes) -> None:
    targets = targets if isinstance(targets, tuple) else (targets,)
    size = np.dtype(BITS[kind]).itemsize
    words = np.zeros((LANES, len(targets)), BITS[kind])
    words[active] = _memory(space, warp).load(warp.addresses(source)[active], size, len(targets))
    for name, word in zip(targets, words.T, strict=True):
        warp.write(name, np.ascontiguousarray(word), active)


def _store(space: str, target: str, sources: Any, kind: str, warp: Warp, active: Lanes) -> None:
    sources = sources if isinstance(sources, tuple) else (sources,)
    words = np.stack([warp.read(name, kind) for name in sources], axis=-1)
    _memory(space, warp).store(warp.addresses(target)[active], words[active])


def _copy(target: str, source: str, size: str, filled: str, warp: Warp, active: Lanes) -> None:
    """cp.async of `size` bytes a lane, of which the first `filled` are read and the rest are zero."""
    num_words = int(size, 0) // 4
    to, come_from = warp.addresses(target)[active], warp.addresses(source)[active]
    read_words = warp.read(filled, "u32")[active] // 4

    def copy() -> None:
        words = np.zeros((to.size, num_words), np.uint32)
        whole = read_words == num_words
        if not (whole | (read_words == 0)).all():
            raise NotImplementedError("a copy that reads a part")
        if whole.any():
            words[whole] = warp.block.memory.load(come_from[whole], 4, num_words)
        warp.block.shared.store(to, words)

    if warp.block.chance.random() < 0.5:
        copy()
    else:
        warp.in_flight[-1].append(copy)


def _wait_for_copies(may_be_left: int, warp: Warp, _active: Lanes) -> None:
    # the open group is not waited for by wait_group, which counts committed ones
    while len(warp.in_flight) - 1 > may_be_left:
        for copy in warp.in_flight.pop(0):
            copy()


def _words(names: Any, warp: Warp) -> Lanes:
    """Registers of a fragment, uint32 [32, registers]."""
    names = names if isinstance(names, tuple) else (names,)
    return np.stack([warp.read(name, "b32") for name in names], axis=-1)


def _write_words(names: Any, words: Lanes, warp: Warp) -> None:
    for name, word in zip(names if isinstance(names, tuple) else (names,), words.T, strict=True):
        warp.write(name, np.ascontiguousarray(word), ALL)


def _load_matrices(targets: Any, source: str, is_transposed: bool, warp: Warp, _active: Lanes) -> None:
    count = len(targets) if isinstance(targets, tuple) else 1
    rows = warp.addresses(source)
    _write_words(targets, tensor_cores.load_matrices(warp.block.shared, rows, count, is_transposed), warp)


def _store_matrices(target: str, sources: Any, is_transposed: bool, warp: Warp, _active: Lanes) -> None:
    rows = warp.addresses(target)
    tensor_cores.store_matrices(warp.block.shared, rows, _words(sources, warp), is_transposed)


def _multiply(target: Any, left: Any, right: Any, added: Any, kind: str, warp: Warp, _active: Lanes) -> None:
    a = tensor_cores.left_fragment(_words(left, warp), kind)
    b = tensor_cores.right_fragment(_words(right, warp), kind)
    _write_words(target, tensor_cores.multiply(a, b, _words(added, warp)), warp)


def _multiply_in_group(columns: int, kind: str, operands: Any, warp: Warp, _active: Lanes) -> None:
    """A warp's 16 of a warp group's 64 rows: target, left, right, whether to add to target, signs, transpositions."""
    target, left, right, adds, *signs = operands
    # of tf32 neither can be transposed; the left one has no word for it where it is in registers
    signs, transposed = [int(sign) for sign in signs[:2]], [sign == "1" for sign in signs[2:]] or [False]
    shared = warp.block.shared
    if isinstance(left, tuple):
        a = tensor_cores.left_fragment(_words(left, warp), kind)
    else:
        descriptor, first = int(warp.read(left, "b64")[0]), 16 * (warp.number % 4)
        a = tensor_cores.operand_in_shared(shared, descriptor, first, 16, transposed[0], kind)
    descriptor = int(warp.read(right, "b64")[0])
    b = tensor_cores.operand_in_shared(shared, descriptor, 0, columns, transposed[-1], kind).T
    before = (
        _words(target, warp) if bool(np.all(warp.read(adds, "pred"))) else np.zeros((LANES, len(target)), np.uint32)
    )
    product = tensor_cores.multiply(a * signs[0], b * signs[1], before)
    _write_words(target, product, warp)
