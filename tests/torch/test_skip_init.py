"""`skip_init`: no parameter is filled with random numbers, and everything else is drawn as always."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from torch_modules import built, cut_off_normal, state
from weightcache.torch import skip_init

torch = pytest.importorskip("torch")
nn = torch.nn


def test_no_parameter_is_filled_with_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the generator gives: a build that draws nothing leaves it where it was."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.embedding, self.recurrent = nn.Linear(5, 5), nn.Embedding(5, 5), nn.LSTM(5, 5)
            self.convolution, self.attention = nn.Conv2d(3, 3, 3), nn.MultiheadAttention(4, 2)
            for name in ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_"):
                getattr(nn.init, name)(self.linear.weight)
            for name in ("kaiming_uniform_", "kaiming_normal_", "orthogonal_"):
                getattr(nn.init, name)(tensor=self.linear.weight)
            nn.init.sparse_(self.linear.weight, 0.5)
            weight = self.embedding.weight
            for tensor in (weight, weight.data, weight.detach(), weight.data[1:3], weight.detach().view(25)):
                tensor.data.uniform_().normal_().bernoulli_().random_().cauchy_().exponential_().geometric_(0.5)
                tensor.data.log_normal_()
            cut_off_normal(weight)
            self.between = nn.Parameter(torch.full((3,), 0.5))
            self.between.data.erfinv_()  # only ever a step on the way from uniform_ to a normal distribution

    torch.manual_seed(1)
    before = torch.get_rng_state()
    with skip_init():
        assert Drawing().get_parameter("between").tolist() == [0.5, 0.5, 0.5]
    assert torch.equal(torch.get_rng_state(), before)
    Drawing()
    assert not torch.equal(torch.get_rng_state(), before)


def test_what_is_no_parameter_is_drawn_as_always() -> None:
    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(50))
            self.register_buffer("gaussian", torch.randn(5), persistent=False)
            self.register_buffer("uniform", torch.empty(5).uniform_(), persistent=False)
            self.register_buffer("initialised", nn.init.normal_(torch.empty(5)), persistent=False)
            self.register_buffer("bounded", nn.init.trunc_normal_(torch.empty(5)), persistent=False)
            self.register_buffer("square", nn.init.orthogonal_(torch.empty(3, 3)), persistent=False)
            self.register_buffer("thin", nn.init.sparse_(torch.empty(3, 3), 0.3), persistent=False)
            self.register_buffer("kept", nn.init.kaiming_uniform_(torch.empty(3, 3)), persistent=False)
            self.register_buffer("order", torch.randperm(9), persistent=False)

    plain = built(1, Buffers)
    with skip_init():
        quick = built(1, Buffers)
    del plain.weight, quick.weight
    assert state(quick) == state(plain)


def test_memory_of_a_parameter_that_is_gone_is_anybodys() -> None:
    with skip_init():
        parameter = nn.Parameter(torch.zeros(1000))
        alias = parameter.data  # lives on, with the memory, when the parameter is gone
        alias.uniform_()
        assert alias.sum() == 0
        del parameter
        alias.uniform_()
        assert alias.sum() != 0
        parameter = nn.Parameter(torch.zeros(1000))
        alias = parameter.data
        parameter.data = torch.zeros(5)
        alias.uniform_()
        assert alias.sum() != 0


def test_everything_that_is_not_random_runs() -> None:
    with skip_init():
        module = built(1)
        weight = nn.Parameter(torch.empty(3, 3))
        nn.init.eye_(weight)
        lazy = nn.LazyLinear(3)
    plain = built(1)
    for name in ("norm.weight", "norm.bias", "batch_norm.running_var", "scale", "vision.bias", "ceiling", "start"):
        assert state(module)[name] == state(plain)[name], name
    assert not module.layers[0].bias.any()
    assert not module.embedding.weight[0].any()
    assert torch.equal(weight, torch.eye(3))
    assert lazy(torch.ones(2, 4)).shape == (2, 3)


def functions() -> dict[str, Any]:
    names = [name for name in dir(nn.init) if name.endswith("_")]
    return {name: getattr(nn.init, name) for name in names} | {
        name: vars(torch.Tensor).get(name) for name in ("uniform_", "normal_", "erfinv_")
    }


def draws(module: Any) -> bool:
    before = torch.get_rng_state()
    nn.init.trunc_normal_(nn.init.normal_(module.weight))
    module.weight.data.uniform_()
    return not torch.equal(torch.get_rng_state(), before)


def test_everything_is_restored_also_by_an_exception() -> None:
    before, linear = functions(), nn.Linear(2, 2)
    with skip_init():
        assert not draws(linear)
    assert functions() == before
    assert draws(linear)
    with pytest.raises(KeyError), skip_init():
        raise KeyError
    assert functions() == before
    assert draws(linear)
    with skip_init():
        assert not draws(linear)


def test_it_can_be_nested_and_decorate() -> None:
    before = functions()

    @skip_init()
    def build() -> Any:
        linear = nn.Linear(2, 2)
        assert not draws(linear)
        with skip_init():
            assert not draws(linear)
        assert not draws(linear)
        return linear

    assert draws(build())
    assert draws(build())
    assert functions() == before


def in_a_thread(work: Any) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


def test_two_threads_at_once_are_refused_and_one_after_the_other_are_not() -> None:
    def enter() -> bool:
        with skip_init():
            return draws(nn.Linear(2, 2))

    with skip_init():
        refused = in_a_thread(enter)
        assert not draws(nn.Linear(2, 2))
    assert isinstance(refused, RuntimeError)
    assert "another thread is inside skip_init" in str(refused)
    assert in_a_thread(enter) is False
    assert in_a_thread(lambda: draws(nn.Linear(2, 2))) is True


def test_other_threads_build_as_always() -> None:
    with skip_init():
        assert in_a_thread(lambda: draws(nn.Linear(2, 2))) is True
        elsewhere = in_a_thread(lambda: state(built(1)))
    assert elsewhere == state(built(1))
