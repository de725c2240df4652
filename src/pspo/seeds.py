"""Seeds that are derived, not drawn: equal parts give equal seeds on every machine, and no global state is used."""

import hashlib


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**62) from what it is for, e.g. derive(run_seed, "rollout", step, problem_id).

    >>> derive(0, "rollout", 3, "wp-17") == derive(0, "rollout", 3, "wp-17") != derive(0, "rollout", 4, "wp-17")
    True
    """
    # The parts are joined with their types, so that ("1", 2) and (1, "2") differ.
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
