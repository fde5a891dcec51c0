"""Seeds: whole numbers of 64 bits. Different seeds give different results, or are refused.

Commands check seeds before anything is computed, so numpy and jax are imported where they are needed.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

from vdit.errors import ConfigError

if TYPE_CHECKING:
    from vdit.types import Array

MAX_SEED = 2**64 - 1


def check_seed(seed: int, name: str = "seed") -> int:
    """Checks a seed.

    Args:
        seed: a whole number from 0 to 2**64 - 1.
        name: what the error calls it.

    Returns:
        The seed as an int.

    Raises:
        ConfigError: it is anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed <= MAX_SEED:
        shown = repr(seed) if len(repr(seed)) <= 40 else f"{repr(seed)[:37]}..."
        raise ConfigError(f"{name} is {shown}, must be a whole number from 0 to {MAX_SEED} (64 bits)")
    return int(seed)


def key_of(seed: int) -> Array:
    """The key of a seed.

    `jax.random.key` keeps the lower 32 bits of a seed only (unless jax runs with 64-bit types). Here the upper half
    goes where jax itself puts it with 64-bit types. Seeds below 2**32 give the same key as `jax.random.key`.

    Args:
        seed: from 0 to 2**64 - 1.

    Returns: a typed key, scalar, of jax's default implementation.

    Raises: ConfigError for anything else.
    """
    import jax
    import numpy as np

    high, low = divmod(check_seed(seed), 2**32)
    key = jax.random.key(low)
    if not high:
        return key
    words = np.array(jax.random.key_data(key))
    words[::2] = high  # threefry: (high, low); rbg: the same twice
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))


def child_seed(seed: int, index: int) -> int:
    """A seed for one part of a larger result.

    Args:
        seed: of the whole result.
        index: number of the part, from 0.

    Returns:
        `seed` itself for part 0; for others a seed derived from both, of 32 bits where `seed` has no more, else of 64.
    """
    import numpy as np

    if index == 0:
        return check_seed(seed)

    kind = np.uint32 if check_seed(seed) < 2**32 else np.uint64
    return int(np.random.SeedSequence((int(seed), index)).generate_state(1, kind)[0])


def seed_32(seed: int) -> int:
    """A seed of 32 bits, for libraries that take no more; of seeds below 2**32 the same number."""
    import numpy as np

    seed = check_seed(seed)
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])
