"""Seeds of 64 bits: all distinct, those below 2**32 as jax has them, anything else refused."""

import jax
import numpy as np
import pytest

from vdit.errors import ConfigError
from vdit.experiment.experiment import Experiment
from vdit.seeds import MAX_SEED, check_seed, child_seed, key_of, seed_32

SEEDS = (0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**33 + 5, 2**63, MAX_SEED)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_keys_are_distinct_and_small_seeds_have_jaxs_own(kind):
    with jax.default_prng_impl(kind):
        keys = {seed: tuple(np.asarray(jax.random.key_data(key_of(seed))).tolist()) for seed in SEEDS}
        assert len(set(keys.values())) == len(SEEDS)
        for seed in SEEDS:
            if seed < 2**32:
                assert keys[seed] == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())
        draws = {jax.random.normal(key_of(seed), (4,)).tobytes() for seed in SEEDS}
        assert len(draws) == len(SEEDS)


def test_keys_are_those_of_jax_with_64_bit_types():
    with jax.enable_x64(True):
        wanted = [np.asarray(jax.random.key_data(jax.random.key(np.uint64(seed)))).tolist() for seed in SEEDS]
    assert [np.asarray(jax.random.key_data(key_of(seed))).tolist() for seed in SEEDS] == wanted


def test_derived_seeds_are_as_wide_as_the_seed():
    assert child_seed(7, 0) == 7
    assert child_seed(7, 3) == int(np.random.SeedSequence((7, 3)).generate_state(1)[0])  # as runs of before had it
    assert child_seed(2**32 + 7, 0) == 2**32 + 7
    assert child_seed(2**32 + 7, 3) not in (child_seed(7, 3), child_seed(2**33 + 7, 3))
    assert [seed_32(seed) for seed in (0, 2**32 - 1)] == [0, 2**32 - 1]
    assert seed_32(5) != seed_32(2**32 + 5) < 2**32


@pytest.mark.parametrize("seed", [-1, 2**64, 10**23, True, 1.0, "1", None, np.int64(-3), np.True_])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed is"):
        check_seed(seed)
    with pytest.raises(ConfigError, match="seed is"):
        key_of(seed)
    with pytest.raises(ConfigError):
        Experiment(name="a", seed=seed)


def test_numpys_whole_numbers_are_seeds():
    assert check_seed(np.uint64(MAX_SEED)) == MAX_SEED
    assert type(check_seed(np.int32(3))) is int
