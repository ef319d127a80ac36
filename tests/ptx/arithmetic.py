"""What an instruction computes of registers alone, for a warp's 32 lanes at once (PTX ISA 9.0, section 9.7).

A register is its bits: uint8 to uint64 [32], and bool for predicates. Types say how bits are read: s32, f32, b16 and so
on. bfloat16 is computed in float32 or wider and rounded to nearest even. fma is computed in double, so its last bit may
differ where the double product or sum was itself rounded; of approximations (ex2, div.full) the same is true.
Used by: machine.py. Tested by: tests/ptx/test_machine.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]
LANES = 32

BITS = {
    "pred": np.bool_, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
    "f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "tf32": np.uint32, "f64": np.uint64,
    "f16x2": np.uint32, "bf16x2": np.uint32,
}  # fmt: skip
NUMBERS: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "tf32": np.float32, "f64": np.float64}
for _width in (8, 16, 32, 64):
    BITS[f"s{_width}"] = BITS[f"u{_width}"] = BITS[f"b{_width}"]
    NUMBERS[f"s{_width}"] = np.dtype(f"int{_width}")


class Meaning(NamedTuple):
    """result type = function(numbers of the source types)."""

    function: Callable[..., Lanes]
    sources: tuple[str, ...]
    result: str


def numbers_of(bits: Lanes, kind: str) -> Lanes:
    """What bits say, read as a type; [..., 2] where it packs two."""
    bits = bits.astype(BITS[kind], copy=False)
    if kind.endswith("x2"):
        halves = np.ascontiguousarray(bits).reshape(*bits.shape, 1).view(np.uint16)
        return numbers_of(halves, kind.removesuffix("x2"))
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(NUMBERS[kind]) if kind in NUMBERS else bits


def bits_of(numbers: Lanes, kind: str) -> Lanes:
    """The bits of numbers of a type."""
    numbers = np.asarray(numbers)
    if kind.endswith("x2"):
        return np.ascontiguousarray(bits_of(numbers, kind.removesuffix("x2"))).view(np.uint32)[..., 0]
    if kind == "bf16":
        return round_to_bfloat16(numbers)
    if kind in NUMBERS:
        return numbers.astype(NUMBERS[kind], copy=False).view(BITS[kind])
    return numbers.astype(BITS[kind], copy=False)


def round_to_bfloat16(numbers: Lanes) -> Lanes:
    """To nearest, ties to even; uint16."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FFF, rounded).astype(np.uint16)


def _shift_left(value: Lanes, count: Lanes) -> Lanes:
    width = value.dtype.itemsize * 8
    return np.where(count < width, value << np.minimum(count, width - 1).astype(value.dtype), 0).astype(value.dtype)


def _shift_right(value: Lanes, count: Lanes) -> Lanes:
    width = value.dtype.itemsize * 8
    shifted = value >> np.minimum(count, width - 1).astype(value.dtype)
    return shifted if value.dtype.kind == "i" else np.where(count < width, shifted, 0).astype(value.dtype)


def _funnel_left(low: Lanes, high: Lanes, count: Lanes) -> Lanes:
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    return ((both << (count & 31).astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


def _bit_field(value: Lanes, first: Lanes, length: Lanes) -> Lanes:
    wide = value.astype(np.int64) if value.dtype.kind == "i" else value.astype(np.uint64).view(np.int64)
    top = 64 - first.astype(np.int64) - length
    field = wide << top
    shift = 64 - length.astype(np.int64)
    signed = field >> shift
    unsigned = (field.view(np.uint64) >> shift.astype(np.uint64)).view(np.int64)
    return np.where(length == 0, 0, signed if value.dtype.kind == "i" else unsigned).astype(value.dtype)


def _pick_bytes(low: Lanes, high: Lanes, which: Lanes) -> Lanes:
    """prmt: four bits for each byte of the result, the fourth asking for the sign of the byte that it names."""
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    result = np.zeros(both.shape, np.uint64)
    for place in range(4):
        pick = (which >> np.uint32(4 * place)).astype(np.uint64)
        byte = (both >> (8 * (pick & np.uint64(7)))) & np.uint64(0xFF)
        sign = np.where(byte >> np.uint64(7), np.uint64(0xFF), np.uint64(0))
        result |= np.where(pick & np.uint64(8), sign, byte) << np.uint64(8 * place)
    return result.astype(np.uint32)


def _divide(a: Lanes, b: Lanes) -> Lanes:
    return np.trunc(a.astype(np.float64) / b).astype(a.dtype)


def _fused(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _to_tf32(a: Lanes) -> Lanes:
    """Ten bits of fraction, to nearest, ties away from zero."""
    return ((a.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def _convert(number: Lanes, to: str, rounding: str) -> Lanes:
    if number.dtype.kind == "f" and to[0] in "su":
        rounder = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
        return rounder(number).astype(NUMBERS.get(to, BITS[to]))
    return number if to == "bf16" else number.astype(NUMBERS.get(to, BITS[to]))


def _flushed(function: Callable[..., Lanes]) -> Callable[..., Lanes]:
    """Results too small for a normal float32 are zero."""

    def flushed(*numbers: Lanes) -> Lanes:
        result = function(*numbers)
        return np.where(np.abs(result) < np.finfo(np.float32).tiny, result.dtype.type(0), result)

    return flushed


ONE = {"neg": np.negative, "not": np.invert, "abs": np.abs, "sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2,
       "rcp": lambda a: a.dtype.type(1) / a, "rsqrt": lambda a: a.dtype.type(1) / np.sqrt(a)}  # fmt: skip
TWO = {"add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
COMPARISONS = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "neu": np.not_equal, "num": lambda a, b: ~np.isnan(a + b), "nan": lambda a, b: np.isnan(a + b),
    "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b), "equ": lambda a, b: ~((a < b) | (a > b)),
}  # fmt: skip


def meaning_of(parts: tuple[str, ...]) -> Meaning | None:
    """What an instruction of registers computes; None where it is no such instruction."""
    name, kind = parts[0], parts[-1]
    is_float = kind in ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
    match parts:
        case ("mul", "wide", _) | ("mad", "wide", _):
            wide = f"{kind[0]}{int(kind[1:]) * 2}"
            dtype = NUMBERS.get(wide, BITS[wide])
            if name == "mul":
                return Meaning(lambda a, b: a.astype(dtype) * b.astype(dtype), (kind, kind), wide)
            return Meaning(lambda a, b, c: a.astype(dtype) * b.astype(dtype) + c, (kind, kind, wide), wide)
        case ("mul", "hi", "u32"):
            return Meaning(lambda a, b: (a.astype(np.uint64) * b) >> np.uint64(32), (kind, kind), kind)
        case ("mul", "lo", _):
            return Meaning(np.multiply, (kind, kind), kind)
        case ("mad", "lo", _):
            return Meaning(lambda a, b, c: a * b + c, (kind, kind, kind), kind)
        case ("mul", *_):
            return Meaning(np.multiply, (kind, kind), kind)
        case ("fma", *_):
            return Meaning(_fused, (kind, kind, kind), kind)
        case ("div", *_):
            return Meaning(np.divide if is_float else _divide, (kind, kind), kind)
        case ("min" | "max", *_):
            has_nan = "NaN" in parts or not is_float
            function = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[name][has_nan]
            return Meaning(function, (kind, kind), kind)
        case ("shl", _):
            return Meaning(_shift_left, (kind, "u32"), kind)
        case ("shr", _):
            return Meaning(_shift_right, (kind, "u32"), kind)
        case ("shf", "l", "wrap", "b32"):
            return Meaning(_funnel_left, (kind, kind, "u32"), kind)
        case ("prmt", "b32"):
            return Meaning(_pick_bytes, (kind, kind, kind), kind)
        case ("bfe", _):
            return Meaning(_bit_field, (kind, "u32", "u32"), kind)
        case ("selp", _):
            return Meaning(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), kind)
        case ("setp", "ne", _):
            return Meaning((lambda a, b: (a < b) | (a > b)) if is_float else np.not_equal, (kind, kind), "pred")
        case ("setp", comparison, _):
            return Meaning(COMPARISONS[comparison], (kind, kind), "pred")
        case ("cvt", *rounding, "f16x2" | "bf16x2", "f32"):
            half = parts[-2].removesuffix("x2")
            return Meaning(
                lambda a, b: (bits_of(a, half).astype(np.uint32) << 16) | bits_of(b, half), ("f32", "f32"), "b32"
            )
        case ("cvt", "rna", "tf32", "f32"):
            return Meaning(_to_tf32, ("f32",), "tf32")
        case ("cvt", *rounding, to, _):
            return Meaning(lambda a: _convert(a, to, rounding[0] if rounding else ""), (kind,), to)
    if name in ONE:
        function = ONE[name]
        return Meaning(_flushed(function) if "ftz" in parts and name == "ex2" else function, (kind,), kind)
    return Meaning(TWO[name], (kind, kind), kind) if name in TWO else None
