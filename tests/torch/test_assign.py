"""`assign_into`: modules that are, bit for bit, those of the plain way."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from torch_modules import built, state
from weightcache.errors import LoadError
from weightcache.torch import assign_into, load_state_dict, skip_init

torch = pytest.importorskip("torch")
nn = torch.nn


def save(path: Path, module: Any, safetensors: bool = False) -> Path:
    if safetensors:
        from safetensors.torch import save_model

        save_model(module, str(path))  # writes tied parameters once
    else:
        torch.save(module.state_dict(), path)
    return path


# ---- the two together


@pytest.mark.parametrize("safetensors", [False, True])
def test_the_module_is_bit_for_bit_that_of_the_plain_way(tmp_path: Path, safetensors: bool) -> None:
    path = save(tmp_path / "weights", built(1), safetensors)
    plain = built(2)
    plain.load_state_dict(built(1).state_dict())
    with skip_init():
        quick = built(3)
    assert assign_into(quick, load_state_dict(path)) == []
    assert state(quick) == state(plain)
    assert list(quick.state_dict()) == list(plain.state_dict())
    assert quick.drop == plain.drop
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for module in (quick, plain):
        module.train()
        module(x).square().sum().backward()
    assert torch.equal(quick(x), plain(x))
    for one, other in zip(quick.parameters(), plain.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_training_goes_the_same_way(tmp_path: Path) -> None:
    path = save(tmp_path / "weights", built(1))
    plain, quick = built(2), built(3)
    plain.load_state_dict(torch.load(path, weights_only=True))
    assign_into(quick, load_state_dict(path))
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for module in (plain, quick):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert state(quick) == state(plain)
    assert state(built(1))["linear.weight"] != state(plain)["linear.weight"]


# ---- assign_into


def pair(**changes: Any) -> dict[str, Any]:
    return {"weight": torch.ones(2, 3), "bias": torch.ones(2), **changes}


def test_nothing_is_copied() -> None:
    module, tensors = nn.Linear(3, 2), pair()
    assign_into(module, tensors)
    assert module.weight.data_ptr() == tensors["weight"].data_ptr()
    tensors["weight"][0, 0] = 5
    assert module.weight[0, 0] == 5
    assert isinstance(module.weight, nn.Parameter)
    assert not isinstance(tensors["weight"], nn.Parameter)
    assert not tensors["weight"].requires_grad


def test_parameters_in_the_state_dict_stay_the_callers() -> None:
    module, given = nn.Linear(3, 2).requires_grad_(False), nn.Linear(3, 2)
    assign_into(module, given.state_dict(keep_vars=True))
    assert given.weight.requires_grad
    assert not module.weight.requires_grad
    assert module.weight is not given.weight
    assert module.weight.data_ptr() == given.weight.data_ptr()


def test_training_and_requires_grad_stay() -> None:
    module = built(1)
    module.train(mode=False)
    module.norm.train()
    module.linear.weight.requires_grad_(False)
    assign_into(module, built(2).state_dict())
    assert not module.training
    assert module.norm.training
    assert not module.linear.weight.requires_grad
    assert module.linear.bias.requires_grad


def test_every_problem_is_listed_and_the_module_stays_as_it_was() -> None:
    module = built(1)
    before, objects = state(module), [*module.parameters(), *module.buffers()]
    given = dict(built(2).state_dict())
    del given["linear.bias"], given["norm.weight"], given["counted"]
    given |= {"extra.one": torch.ones(1), "two": torch.ones(1)}
    with pytest.raises(LoadError) as caught:
        assign_into(module, given)
    assert caught.value.source == "Everything"
    listed = {"missing: linear.bias", "missing: norm.weight", "missing: counted"}
    assert set(caught.value.problems) == {*listed, "unexpected: extra.one", "unexpected: two"}
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    given["scale"], given["token"] = torch.ones(13), given["token"].double()
    given["position"] = "not a tensor"
    with pytest.raises(LoadError) as caught:
        assign_into(module, given, allow_unexpected=["two"])
    assert set(caught.value.problems) == {
        *listed,
        "unexpected: extra.one",
        "shape of scale: got (13,), wanted (12,)",
        "dtype of token: got torch.float64, wanted torch.float32",
        "position: got a str, wanted a tensor",
    }
    assert state(module) == before
    assert all(one is other for one, other in zip([*module.parameters(), *module.buffers()], objects, strict=True))


def test_a_module_that_fails_half_way_is_as_it_was() -> None:
    class Failing(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
            args[-1].append("this part has no such format")

    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Failing(2, 2))
    before, weight = state(module), module[0].weight
    with pytest.raises(LoadError, match="no such format"):
        assign_into(module, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).state_dict())
    assert state(module) == before
    assert module[0].weight is weight


def test_unexpected_names_can_be_allowed_and_are_returned() -> None:
    given = pair(**{"label_enc.weight": torch.ones(1), "bert.position_ids": torch.ones(1), "bert.other": None})
    assert assign_into(nn.Linear(3, 2), given, allow_unexpected=["bert.*", "label_enc.weight", "never"]) == [
        "label_enc.weight",
        "bert.position_ids",
        "bert.other",
    ]
    with pytest.raises(LoadError, match="unexpected: label_enc") as caught:
        assign_into(nn.Linear(3, 2), given, allow_unexpected=["bert.*"])
    assert "allow_unexpected" in caught.value.hint
    with pytest.raises(LoadError, match="missing: bias"):  # what is missing cannot be allowed
        assign_into(nn.Linear(3, 2), {"weight": torch.ones(2, 3)}, allow_unexpected=["*"])


def test_a_prefix_is_stripped_and_one_that_is_forgotten_is_named() -> None:
    given = {f"module.{name}": tensor for name, tensor in pair().items()}
    names = list(given)
    module = nn.Linear(3, 2)
    assert assign_into(module, given, strip_prefix="module.") == []
    assert module.weight.data_ptr() == given["module.weight"].data_ptr()
    assert list(given) == names
    with pytest.raises(LoadError) as caught:
        assign_into(module, given)
    assert "strip_prefix='module.'" in caught.value.hint
    assert assign_into(module, given | {"module.x": 1}, strip_prefix="module.", allow_unexpected=["x"]) == ["x"]
    with pytest.raises(LoadError, match=r"both module\.weight and weight are given"):
        assign_into(module, given | pair(), strip_prefix="module.")


def test_weights_one_level_below_are_pointed_at() -> None:
    with pytest.raises(LoadError) as caught:
        assign_into(nn.Linear(3, 2), {"model": pair(), "epoch": 3})
    assert "state_dict['model']" in caught.value.hint


def test_versions_of_formats_are_carried_along_and_not_written_to() -> None:
    """A batch norm from before version 2 has no counter, and torch adds it; a younger one without is damaged."""
    wrapped = nn.Sequential(OrderedDict(module=nn.BatchNorm1d(3)))
    old = wrapped.state_dict()
    del old["module.num_batches_tracked"]
    with pytest.raises(LoadError, match="missing: num_batches_tracked"):
        assign_into(nn.BatchNorm1d(3), old, strip_prefix="module.")
    assert all("assign_to_params_buffers" not in version for version in old._metadata.values())
    assign_into(nn.BatchNorm1d(3), dict(old), strip_prefix="module.")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.again = self.head
        self.register_buffer("one", torch.zeros(2))
        self.register_buffer("same", self.one, persistent=False)


@pytest.mark.parametrize("left_out", [(), ("head.weight", "again.weight"), ("embedding.weight",)])
def test_tied_parameters_stay_tied(left_out: tuple[str, ...]) -> None:
    given = {name: tensor for name, tensor in built(1, Tied).state_dict().items() if name not in left_out}
    given["one"] = torch.ones(2)
    module = built(2, Tied)
    assign_into(module, given)
    assert module.embedding.weight is module.head.weight is module.again.weight
    assert module.one is module.same
    assert module.same.sum() == 2
    assert len(list(module.parameters())) == 1
    assert torch.equal(module.head.weight, built(1, Tied).head.weight)


def test_tied_parameters_with_equal_copies_are_tied_and_with_different_values_refused() -> None:
    given = {name: tensor.clone() for name, tensor in built(1, Tied).state_dict().items()}
    given["embedding.weight"][0, 0] = given["head.weight"][0, 0] = given["again.weight"][0, 0] = float("nan")
    module = built(2, Tied)
    assign_into(module, given)
    assert module.embedding.weight is module.head.weight
    given["head.weight"][1, 1] += 1
    with pytest.raises(LoadError, match=r"embedding\.weight and head\.weight are tied in the module, but differ"):
        assign_into(module, given)


def test_tensors_that_share_memory_come_apart_where_the_module_has_two() -> None:
    whole = torch.arange(12.0)
    given = {
        "0.weight": whole[:9].view(3, 3),
        "0.bias": whole[9:],
        "1.weight": whole[3:].view(3, 3),
        "1.bias": whole[9:],
    }
    module, plain = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    plain.load_state_dict(given)
    assign_into(module, given)
    for one in (module, plain):
        with torch.no_grad():
            one[0].weight.mul_(2)
            one[0].bias.mul_(3)
    assert state(module) == state(plain)
    assert module[0].weight.data_ptr() == whole.data_ptr()


def test_the_modules_layout_is_kept() -> None:
    given = pair(weight=torch.arange(6.0).view(3, 2).t())
    module, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(given)
    assign_into(module, given)
    assert module.weight.stride() == plain.weight.stride() == (3, 1)
    assert state(module) == state(plain)
    images = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assign_into(images, nn.Conv2d(3, 4, 3).state_dict())
    assert images.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_sees_a_parameters_memory_sees_the_new_values() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))
            self.register_buffer("front", self.weight.data[:2], persistent=False)

    module, plain = Views(), Views()
    for one, load in ((module, assign_into), (plain, nn.Module.load_state_dict)):
        load(one, {"weight": torch.ones(4)})
        one.weight.data[0] = 7
    assert state(module) == state(plain)
    assert module.front.tolist() == [7, 1]


def test_a_recurrent_module_uses_what_it_was_given() -> None:
    module, given = nn.LSTM(3, 3), nn.LSTM(3, 3)
    assign_into(module, given.state_dict())
    x = torch.ones(2, 3)
    assert torch.equal(module(x)[0], given(x)[0])


def test_lazy_modules_and_extra_state_go_the_plain_way() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lazy, self.kept = nn.LazyLinear(2), ""

        def get_extra_state(self) -> Any:
            return self.kept

        def set_extra_state(self, state: Any) -> None:
            self.kept = state

    module = Extra()
    tensors = {"lazy.weight": torch.ones(2, 3), "lazy.bias": torch.zeros(2), "_extra_state": "it"}
    assign_into(module, tensors)
    assert module.kept == "it"
    assert module.lazy(torch.ones(1, 3)).tolist() == [[3, 3]]


def test_a_module_that_renames_old_names_is_asked_itself() -> None:
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
            super()._load_from_state_dict(state_dict, prefix, *args)

    module = Renaming(3, 2)
    assign_into(module, {"kernel": torch.ones(2, 3), "bias": torch.ones(2)})
    assert module.weight.sum() == 6


def test_what_is_left_on_the_meta_device_is_an_error() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("frequencies", torch.arange(3.0), persistent=False)

    given = Rotary().state_dict()
    with torch.device("meta"):
        module = Rotary()
    with pytest.raises(LoadError, match="frequencies is on the meta device") as caught:
        assign_into(module, given)
    assert "skip_init" in caught.value.hint
    assert module.linear.weight.is_meta
    with torch.device("meta"):
        linear = nn.Linear(2, 2)
    assign_into(linear, {"weight": given["linear.weight"], "bias": given["linear.bias"]})
    assert linear.weight.data_ptr() == given["linear.weight"].data_ptr()


def test_other_dtypes_and_empty_tensors_are_assigned_as_they_are() -> None:
    module = nn.Module()
    tensors = {
        "float16": torch.ones(3).half(),
        "bfloat16_": torch.ones(3).bfloat16(),
        "int8": torch.ones(3, dtype=torch.int8),
        "empty": torch.empty(0, 3),
        "empty_too": torch.empty(0, 3),
        "scalar": torch.tensor(3),
    }
    for name, tensor in tensors.items():
        module.register_buffer(name, torch.zeros_like(tensor))
    assign_into(module, tensors)
    assert all(getattr(module, name).data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("module", {}), {}, "module must be"),
        ((nn.Linear(2, 2), [1]), {}, "state_dict must be"),
        ((nn.Linear(2, 2), {1: torch.ones(1)}), {}, "keys of state_dict must be str"),
        ((nn.Linear(2, 2), {}), {"allow_unexpected": "weight"}, "allow_unexpected must be"),
        ((nn.Linear(2, 2), {}), {"allow_unexpected": 3}, "allow_unexpected must be"),
        ((nn.Linear(2, 2), {}), {"strip_prefix": ["module."]}, "strip_prefix must be"),
    ],
)
def test_a_programmers_mistake_is_a_type_error(arguments: Any, options: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        assign_into(*arguments, **options)
