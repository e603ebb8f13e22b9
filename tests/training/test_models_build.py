"""Building a model by name: its arguments, a user's own `module:function`, and clear errors for both."""

import importlib

import pytest
import torch
from torch import nn

from zmpsl import models

# --- what a model takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "spec"),
    [
        ("resnet18", {}, ((3, 224, 224), "float32")),
        ("resnet18", {"small_input": True, "channels": 1}, ((1, 32, 32), "float32")),
        ("vgg19_mpsl", {}, ((3, 32, 32), "float32")),
        ("lenet5", {"size": 32, "channels": 3}, ((3, 32, 32), "float32")),
        ("mlp", {"features": 5}, ((5,), "float32")),
        ("gpt_tiny", {"context": 16}, ((16,), "int64")),
    ],
)
def test_input_spec_follows_the_arguments(name, args, spec):
    assert models.input_spec(name, **args) == spec


def test_every_model_has_an_input():
    assert models.INPUTS.keys() == models.ZOO.keys()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet81", {}, r"no model is called 'resnet81' \(did you mean 'resnet18'\?\): .*gpt_tiny"),
        ("", {}, "no model is called ''"),
        ("resnet18", {"clases": 3}, r"no argument 'clases' \(did you mean 'classes'\?\): it accepts classes, channels"),
        ("vgg11", {"depth": 13}, "'vgg11' has no argument 'depth'"),
        ("vgg11", {"name": 13}, "'vgg11' has no argument 'name'"),
        ("mlp", {"classes": "ten"}, "'mlp': argument 'classes' is 'ten', but must be a whole number"),
        ("mlp", {"classes": True}, "argument 'classes' is True"),
        ("mlp", {"classes": 0}, "argument 'classes' is 0"),
        ("mlp", {"hidden": 128}, "argument 'hidden' is 128, but must be a list"),
        ("mlp", {"hidden": [128, 0]}, r"argument 'hidden' is \[128, 0\]"),
        ("resnet18", {"small_input": 1}, "argument 'small_input' is 1, but must be true or false"),
        ("vgg11", {"dropout": 1.0}, "argument 'dropout' is 1.0"),
        ("vgg11", {"dropout": float("nan")}, "argument 'dropout' is nan"),
    ],
)
@pytest.mark.parametrize("function", [models.build, models.input_spec])
def test_a_wrong_name_argument_or_value_is_named_before_a_block_is_made(function, name, args, message):
    with pytest.raises(models.ModelError, match=message):
        function(name, **args)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gpt_tiny", {"width": 10, "heads": 4}, "'gpt_tiny', block 0: width 10 cannot be cut into 4 equal heads"),
        ("lenet5", {"size": 11}, "'lenet5', block 0: size 11 leaves nothing"),
    ],
)
def test_arguments_that_do_not_go_together_are_named_at_the_first_block(name, args, message):
    with pytest.raises(models.ModelError, match=message):
        next(models.build(name, **args))


def test_the_smallest_lenet5_works():
    net = nn.Sequential(*models.build("lenet5", size=12))
    assert net(torch.zeros(2, 1, 12, 12)).shape == (2, 10)


# --- a user's own model -----------------------------------------------------------------------------------------------

USER = """
from torch import nn

calls = []

def lazy(width=3):
    for i in range(3):
        calls.append(i)
        yield nn.Linear(width, width)

def as_list(name):
    return [nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)]

def sequential(**options):
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU())

def with_number():
    yield nn.Linear(3, 3)
    yield 7

def tied():
    one = nn.Linear(3, 3)
    two = nn.Linear(3, 3)
    two.weight = one.weight
    return [one, nn.ReLU(), two]

def relu_twice():
    relu = nn.ReLU()
    return [nn.Linear(3, 3), relu, nn.Linear(3, 3), relu]

def one_module():
    return nn.Linear(3, 3)

def refuses():
    raise ValueError("no such size")

number = 3
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A module on the path; its name is new each time, so that no other test's copy is found."""
    name = f"user_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("function", "args", "count"),
    [("lazy", {"width": 5}, 3), ("as_list", {"name": 1}, 3), ("sequential", {"any": 1}, 2), ("relu_twice", {}, 4)],
)
def test_a_users_function_may_be_a_generator_or_give_a_list_or_a_sequential(user, function, args, count):
    blocks = list(models.build(f"{user}:{function}", **args))
    assert len(blocks) == count
    assert all(isinstance(block, nn.Module) for block in blocks)


def test_a_users_generator_is_lazy(user):
    blocks = models.build(f"{user}:lazy")
    calls = importlib.import_module(user).calls
    assert calls == []
    next(blocks)
    assert calls == [0]


def test_a_block_that_is_no_module_is_found_when_its_turn_comes(user):
    blocks = models.build(f"{user}:with_number")
    next(blocks)
    with pytest.raises(models.ModelError, match="block 1 is a 'int', but must be"):
        next(blocks)


def test_blocks_that_share_a_weight_are_refused(user):
    with pytest.raises(models.ModelError, match="block 2 shares a weight with block 0"):
        list(models.build(f"{user}:tied"))


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("lasy", {}, r"has no function 'lasy' \(did you mean 'lazy'\?\)"),
        ("number", {}, "has no function 'number'"),
        ("", {}, "has no function ''"),
        ("lazy", {"with": 3}, "has no argument 'with'.*it accepts width"),
        ("as_list", {}, "missing a required argument: 'name'"),
        ("one_module", {}, "gave one Linear, which cannot be cut"),
        ("refuses", {}, "no such size"),
    ],
)
def test_a_users_mistake_is_named(user, function, args, message):
    with pytest.raises(models.ModelError, match=message):
        models.build(f"{user}:{function}", **args)


@pytest.mark.parametrize("name", ["no_such_module_here:f", ":f", ".relative:f"])
def test_a_module_that_cannot_be_imported_is_named(name):
    with pytest.raises(models.ModelError, match="cannot import"):
        models.build(name)


def test_the_input_of_a_users_model_is_not_known(user):
    with pytest.raises(models.ModelError, match="not of the zoo"):
        models.input_spec(f"{user}:lazy")
