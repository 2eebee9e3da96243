"""Properties of the canonical form: one for each run, however it is written, and another for any other run."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from swarm.errors import ManifestError
from swarm.manifest import Manifest
from tests.chain import PEERS

Values = dict[str, Any]

TEXTS = st.text(min_size=1, max_size=12).filter(str.isprintable)
POSITIVE = st.one_of(st.integers(1, 10**6).map(float), st.floats(1e-12, 1e12))
BELOW_ONE = st.one_of(st.just(0.0), st.floats(0, 1, exclude_max=True))
PLAIN = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def table(required: Values, **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Values]:
    return st.fixed_dictionaries(required, optional=optional)


def schedules() -> st.SearchStrategy[Values]:
    falling = table(
        {"kind": st.sampled_from(["linear", "cosine"]), "total_steps": st.integers(100, 10**9)},
        warmup_steps=st.integers(0, 100),
        final_ratio=st.sampled_from([0.0, 0.5, 1.0]),
    )
    return st.one_of(table({}, kind=st.just("constant"), warmup_steps=st.integers(0, 100)), falling)


def optimizers(muon: bool) -> st.SearchStrategy[Values]:
    common = {"weight_decay": POSITIVE, "clip_norm": POSITIVE, "schedule": schedules()}
    adamw = table(
        {"optimizer": st.just("adamw"), "learning_rate": POSITIVE},
        betas=st.tuples(BELOW_ONE, BELOW_ONE).map(list),
        eps=POSITIVE,
        **common,
    )
    momentum = st.floats(0.1, 0.9)
    sgd = table({"optimizer": st.just("sgd"), "learning_rate": POSITIVE}, momentum=momentum, **common)
    nesterov = table(
        {"optimizer": st.just("sgd"), "learning_rate": POSITIVE, "momentum": momentum, "nesterov": st.booleans()}
    )
    both = table(
        {"optimizer": st.just("muon"), "learning_rate": POSITIVE},
        betas=st.just([0.5, 0.5]),
        momentum=momentum,
        **common,
    )
    return st.one_of(adamw, sgd, nesterov, *([both] if muon else []))


def sources() -> st.SearchStrategy[Values]:
    size = {"sequence_length": st.integers(2, 4096), "batch_size": st.integers(1, 64)}
    return st.one_of(
        table({"source": st.just("stdlib"), **size}),
        table({"source": st.just("text"), "paths": st.lists(TEXTS, min_size=1, max_size=3), **size}, field=TEXTS),
        table(
            {"source": st.just("hub"), "dataset": TEXTS, **size}, config=TEXTS, split=TEXTS, revision=TEXTS, field=TEXTS
        ),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Values:
    """The values of a valid manifest, as TOML gives them."""
    updates, by_target = draw(st.booleans()), draw(st.booleans())
    seconds = {
        f"{name}_seconds": st.floats(0.1, 86400) for name in ("patience", "assemble", "exchange", "commit", "isolation")
    }
    amount = {"target_batch": st.integers(64, 10**9)} if by_target else {"inner_steps": st.integers(1, 10**9)}
    values = {
        "waggle": 1,
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)),
        "model": draw(
            st.one_of(
                table({"type": TEXTS}, config=st.dictionaries(TEXTS, PLAIN, max_size=4)),
                table({"hub": TEXTS}, revision=TEXTS),
            )
        ),
        "tokenizer": {"name": draw(st.sampled_from(["bytes", "org/name"]))},
        "data": draw(sources()),
        "inner" if updates else "outer": draw(optimizers(muon=updates)),
        "round": draw(
            table(
                {"average": st.just("updates" if updates else "gradients"), **amount},
                codec=st.sampled_from(["fp32", "fp16", "int8", "int4", "sparse"]),
                error_feedback=st.floats(0, 0.99),
                min_group_size=st.integers(1, 8),
                max_group_size=st.integers(8, 64),
                max_norm_ratio=st.floats(1.5, 1e6),
                **seconds,
            )
        ),
    }
    if values["round"].get("codec") == "sparse":
        densities = st.sampled_from([4, 8, 16, 32, 64, 128, 256])
        values["round"] |= draw(table({}, keep_one_in=densities, mean_keep_one_in=densities))
    values |= draw(table({}, description=TEXTS, seed=st.integers(0, 2**63 - 1), author=st.sampled_from(PEERS)))
    if draw(st.booleans()):
        values["validation"] = {"fraction": draw(st.floats(0.001, 0.5)), "every": draw(st.integers(1, 100))}
    return values


@st.composite
def written(draw: st.DrawFn, values: Values) -> str:
    """``values`` as TOML: keys in any order, tables inline, comments, and 1 for 1.0 where the field has a type."""

    def spell(value: Any, free: bool) -> str:
        if isinstance(value, dict):
            ordered = draw(st.permutations(list(value.items())))
            items = [f"{json.dumps(key, ensure_ascii=False)} = {spell(item, free)}" for key, item in ordered]
            return "{" + draw(st.sampled_from([", ", " ,\t"])).join(items) + "}"
        if isinstance(value, list):
            return "[" + draw(st.sampled_from([",", ", ", " ,\n  "])).join(spell(item, free) for item in value) + "]"
        if isinstance(value, float) and not free and value.is_integer() and draw(st.booleans()):
            return str(int(value))
        if isinstance(value, float):
            return repr(value) if draw(st.booleans()) else f"{value:.17e}"
        # JSON spells all that is left as TOML does, but writes beyond the first plane in halves.
        return json.dumps(value, ensure_ascii=False)

    lines = []
    for name, value in draw(st.permutations(list(values.items()))):
        space = draw(st.sampled_from(["", " ", "\t "]))
        if name == "model":
            # Only model.config is free; an inline table keeps it whole.
            parts = [f"{key} = {spell(item, free=True)}" for key, item in value.items()]
            lines.append(f"model{space}={space}{{" + ", ".join(parts) + "}")
        else:
            lines.append(f"{name}{space}={space}{spell(value, free=False)}{draw(st.sampled_from(['', ' # why']))}")
        lines.extend(draw(st.sampled_from([[], [""], ["# what"]])))
    return "\n".join(lines)


def leaves(values: Values, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    return found


def other(value: Any) -> Any:
    """A value near ``value``, of its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.75 if value else 0.5
    if isinstance(value, list):
        return [other(value[0]), *value[1:]] if value else [1]
    if isinstance(value, dict):
        return {"key": 1}
    words = ["fp32", "fp16", "linear", "cosine"]
    return words[words.index(value) ^ 1] if value in words else f"{value}a"


@given(st.data())
def test_order_space_and_spelling_make_no_difference(data: st.DataObject) -> None:
    values = data.draw(manifests())
    first, second = (Manifest.from_toml(data.draw(written(values))) for _ in range(2))
    assert first.canonical() == second.canonical()
    assert first == second


@given(manifests())
def test_the_canonical_form_is_read_back_the_same(values: Values) -> None:
    manifest = Manifest._validated(values)
    data = manifest.canonical()
    again = Manifest.from_canonical(data)
    assert again == manifest
    assert again.canonical() == data
    assert (again.digest(), again.run_id) == (manifest.digest(), manifest.run_id)


@given(manifests())
def test_defaults_may_be_written_out(values: Values) -> None:
    manifest = Manifest._validated(values)
    assert Manifest._validated(json.loads(manifest.canonical())).digest() == manifest.digest()


@given(st.data())
def test_any_other_value_is_another_run(data: st.DataObject) -> None:
    full = json.loads(Manifest._validated(data.draw(manifests())).canonical())
    changed = json.loads(json.dumps(full))
    *tables, field = data.draw(st.sampled_from(leaves(full)))
    place = changed
    for name in tables:
        place = place[name]
    place[field] = other(place[field])
    assume(place[field] != value_at(full, (*tables, field)))  # 1e300 + 1 is 1e300
    try:
        manifest = Manifest._validated(changed)
    except ManifestError:
        return  # such a run there cannot be
    assert manifest.digest() != Manifest._validated(full).digest()
    assert manifest.run_id != Manifest._validated(full).run_id


def value_at(values: Values, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values[name]
    return values


@given(manifests())
def test_the_form_of_a_run_id(values: Values) -> None:
    manifest = Manifest._validated(values)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}@[0-9a-f]{16}", manifest.run_id)
    assert manifest.digest().startswith(manifest.run_id.partition("@")[2])


@given(st.dictionaries(st.sampled_from(["waggle", "name", "model", "data", "round", "inner", "x"]), PLAIN))
def test_nonsense_is_refused_in_lines_that_name_a_field(values: Values) -> None:
    try:
        Manifest._validated(values)
    except ManifestError as error:
        for line in str(error).splitlines():
            assert re.match(r"[a-z_.]+|manifest", line)
            assert ": " in line
            assert line.isprintable()
    else:
        raise AssertionError("a manifest without tokenizer")


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_a_manifest_error(data: bytes) -> None:
    try:
        Manifest.from_canonical(data)
    except ManifestError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("a manifest of 200 bytes")
