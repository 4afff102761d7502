"""Derivatives that are written by hand, to second order, and the two forms of every meta-gradient."""

import audit
import jax
import pytest


@pytest.mark.slow
def test_every_rule_is_plain_mathematics_to_second_order(float64):
    assert audit.failures(audit.rule_errors()) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", ["blocks", "conv4"])
def test_meta_gradients_do_not_depend_on_the_device(float64, network):
    assert audit.failures(audit.meta_errors(network)) == []


def test_no_rule_is_left_out():
    assert audit.unknown_rules() == set()


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("import jax\n\n@jax.custom_jvp\ndef f(x):\n    return x\n", "new.f"),
        ("import functools, jax\n@functools.partial(jax.custom_vjp, nondiff_argnums=1)\ndef f(x, n): ...", "new.f"),
        ("from jax import custom_gradient as mine\n", "new.py, line 1"),
        ("import jax\nf = jax.custom_jvp(abs)\n", "new.py, line 2"),
    ],
)
def test_a_new_rule_is_found(code, where, tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    (tmp_path / "new.py").write_text(code)
    monkeypatch.setattr(audit.mtl_jax, "__file__", str(tmp_path / "__init__.py"))
    assert audit.unknown_rules() == {where}


def test_a_rule_that_is_right_in_first_order_alone_is_found(float64, monkeypatch):
    @jax.custom_jvp
    def square(x):
        return x * x

    @square.defjvp
    def square_jvp(primals, tangents):
        (x,), (tangent,) = primals, tangents
        return square(x), 2 * jax.lax.stop_gradient(x) * tangent

    case = audit.Case(square, lambda x: x * x, (audit.CHANNELS,))
    monkeypatch.setattr(audit, "RULES", {"square": [case]})
    assert audit.failures(audit.rule_errors()) == ["square (cpu)", "square (accelerator)"]
