"""Uniforms by a counter: each is a hash of where it is used, so that neither a layout nor a neighbour changes it.

The hash is SplitMix64's (Steele et al. 2014, Fast Splittable Pseudorandom Number Generators, Figure 16: Stafford's
variant 13). Its integers are int64 here, which NumPy and torch multiply modulo 2⁶⁴ alike: the same numbers from both.
"""

from __future__ import annotations

from types import ModuleType

from hpc_rl.types import Numbers


def _signed(x: int) -> int:
    """The int64 of the same bits as a number below 2⁶⁴."""
    return x - (1 << 64) if x >> 63 else x


GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _right(z: Numbers, bits: int) -> Numbers:
    """z shifted as if it had no sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def finalised(z: Numbers) -> Numbers:
    """Bits int64 [..] that look drawn, of any int64 [..], one to one."""
    z = (z ^ _right(z, 30)) * _FIRST
    z = (z ^ _right(z, 27)) * _SECOND
    return z ^ _right(z, 31)


def seed_of(u: Numbers) -> Numbers:
    """The int64 [n] key that a NumPy uniform u [n] stands for."""
    return (u * 2.0**53).astype("int64")


def mixed(key: Numbers, salt: Numbers | int) -> Numbers:
    """The key int64 [..] that follows from another and a number ≥ 0: the state ``salt`` + 1 steps on, hashed."""
    far = (salt + 1) * GOLDEN
    return finalised(key + (_signed(far % (1 << 64)) if isinstance(far, int) else far))


def uniforms(xp: ModuleType, key: Numbers, count: int, double: bool = True) -> Numbers:
    """Standard uniforms [.., count] of keys int64 [..]: float64 of the upper 53 bits of hashes, or float32 of 24.

    Number k of a key is the same for any count, and always below 1.
    """
    bits = finalised(key[..., None] + xp.arange(1, count + 1, device=key.device) * GOLDEN)
    if double:
        return xp.asarray(_right(bits, 11), dtype=xp.float64) * 2.0**-53
    return xp.asarray(_right(bits, 40), dtype=xp.float32) * 2.0**-24
