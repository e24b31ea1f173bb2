"""Damages bytes and JSON at random, as damaged, hostile and merely careless files are."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

INTERESTING = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 1.5, -0.0, 1e9, 1e308, 10**400, 2**31, 2**63, 200_000_000),
    *(
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        "a",
        "7",
        "abc",
        "\0",
        "\ud800",
        "é" * 200,
        "../../x",
        "/etc/passwd",
    ),
    *("a\\b.jpg", "x" * 5000, "%s%n", [], {}, [[]], [1], [None] * 4, ["1", "2"], [10**400] * 4, [1e308] * 8, [[1] * 6]),
    *({"size": ["40", "60"], "counts": "0"}, {"size": [1_000_000_000, "aaaaa"]}, {"counts": [1, 2, 3]}, {"": 0}),
)


def mutate_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Returns the bytes with one to six changes.

    Args:
        others: further files, of which parts are put in.
    """
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        where = rng.randrange(len(content) + 1)
        if rng.random() < 0.4:  # in the head, where formats say most
            where = min(where, rng.randrange(64))
        end = min(len(content), where + rng.choice((1, 2, 4, 8, 64, 1024)))
        change = rng.randrange(9)
        if change == 0 and where < len(content):
            content[where] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[where : where + 1] = bytes([rng.randrange(256)])
        elif change == 2:
            del content[where:end]
        elif change == 3:
            del content[where:]
        elif change == 4:
            content[where:where] = content[where:end] * rng.choice((1, 2, 50))
        elif change == 5:
            content[where:where] = rng.randbytes(rng.choice((1, 4, 30)))
        elif change == 6:
            length = rng.choice((1, 2, 4, 8))
            number = (rng.choice(INTERESTING) & (256**length - 1)).to_bytes(length, rng.choice(("little", "big")))
            content[where : where + length] = number
        elif change == 7 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            content[where:end] = other[start : start + rng.choice((4, 64, 1024))]
        else:
            content[where:end] = bytes(end - where)
    return bytes(content)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Returns JSON as `mutate_value` changes it; sometimes it is no longer JSON."""
    text = json.dumps(mutate_value(data, rng)).encode()
    return mutate_bytes(text, rng) if rng.random() < 0.1 else text


def mutate_value(data: bytes, rng: random.Random) -> Any:
    """Returns the content of JSON with one to four values replaced, taken away, doubled or exchanged."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        if not places:
            break
        holder, key = rng.choice(places)
        change = rng.randrange(10)
        if change < 5:
            holder[key] = copy.deepcopy(rng.choice(WRONG))
        elif change == 5:
            del holder[key]
        elif change == 6 and isinstance(holder, list):
            holder.insert(key, json.loads(json.dumps(holder[key])))
        elif change == 7 and type(holder[key]) in (int, float) and abs(holder[key]) < 1e300:
            holder[key] = rng.choice((-1, 0.5, 2, 1000, 10**9)) * holder[key]
        else:
            other, name = rng.choice(places)
            try:
                value = json.loads(json.dumps(other[name]))
            except (KeyError, IndexError, TypeError):  # was taken away before
                value = None
            holder[key] = value
    return content


def _places(content: Any) -> Any:
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])
