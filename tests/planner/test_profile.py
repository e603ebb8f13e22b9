"""Profiles: what is measured of a model's blocks, their file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from zmpsl.models import ZOO, input_spec

from zmpsl.engine.build import build_blocks, summarise
from zmpsl.engine.profile import Effort, measure
from zmpsl.errors import JobError
from zmpsl.job.schema import Model, Optimizer
from zmpsl.profiles import Profile, Timing, check_profile, optimizer_name, read_profile, require, write_profile
from zmpsl.trials.message import message_cost

QUICK = Effort(2, 0.05)
DIGITS = Model(name="digits_cnn")
BLOCKS = summarise(DIGITS)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return measure(DIGITS, BLOCKS, range(6), torch.randn(16, 1, 8, 8), Optimizer(), QUICK)


def inputs_of(name: str, samples: int) -> torch.Tensor:
    shape, dtype = input_spec(name)
    return torch.randn(samples, *shape) if dtype == "float32" else torch.zeros(samples, *shape, dtype=torch.int64)


class TestMeasure:
    def test_every_block_has_seconds_and_bytes(self, profile: Profile) -> None:
        assert list(profile.blocks) == list(range(6))
        for index, block in profile.blocks.items():
            assert block.name == BLOCKS[index].kind
            assert block.forward.median_s > 0
            assert block.forward.low_s <= block.forward.median_s <= block.forward.high_s
            assert block.parameter_bytes == 4 * BLOCKS[index].parameters
            assert block.optimizer_bytes == block.parameter_bytes  # momentum
        assert (profile.batch_size, profile.optimizer, profile.model_blocks) == (16, "sgd+momentum", 6)
        check_profile(profile, "here")

    def test_output_bytes_are_those_of_the_model(self, profile: Profile) -> None:
        x, sizes = torch.randn(16, 1, 8, 8), []
        for _, block in build_blocks(DIGITS, 0, range(6)):
            x = block(x)
            sizes.append(x.nbytes)
        assert [block.output_bytes for block in profile.blocks.values()] == sizes

    def test_saved_bytes_together_are_what_autograd_keeps_for_the_whole_model(self, profile: Profile) -> None:
        blocks = [block for _, block in build_blocks(DIGITS, 0, range(6))]
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = nn.Sequential(*blocks)(torch.randn(16, 1, 8, 8))
        for block in blocks:
            for tensor in (*block.parameters(), *block.buffers()):
                saved.pop(tensor.untyped_storage().data_ptr(), None)
        assert output.requires_grad
        assert sum(block.saved_bytes for block in profile.blocks.values()) == sum(saved.values())

    @pytest.mark.parametrize("name", ["lenet5", "vgg11", "resnet18", "resnet101_mpsl", "gpt_tiny"])
    def test_one_block_deep_in_a_model_needs_none_of_the_blocks_before_it(self, name: str) -> None:
        assert name in ZOO
        model = Model(name=name)
        blocks = summarise(model)
        found = measure(model, blocks, [len(blocks) - 1], inputs_of(name, 2), Optimizer(name="adam"), QUICK)
        (block,) = found.blocks.values()
        assert block.optimizer_bytes == 2 * block.parameter_bytes
        assert block.output_bytes > 0

    def test_random_state_is_left_as_it_was(self) -> None:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        measure(DIGITS, BLOCKS, [1], torch.zeros(2, 1, 8, 8), Optimizer(), QUICK)
        assert torch.equal(torch.rand(3), expected)

    def test_an_input_that_does_not_fit_names_the_block(self) -> None:
        with pytest.raises(
            JobError, match=r"digits_cnn: block 0 .* cannot be profiled with an input of \[2, 3, 8, 8\]"
        ):
            measure(DIGITS, BLOCKS, [0], torch.zeros(2, 3, 8, 8), Optimizer(), QUICK)

    def test_optimisers_that_keep_different_things_have_different_names(self) -> None:
        kinds = [Optimizer(), Optimizer(momentum=0.0), Optimizer(name="adam")]
        assert [optimizer_name(kind) for kind in kinds] == ["sgd+momentum", "sgd", "adam"]


class TestMessages:
    def test_a_message_through_real_sockets_costs_both_ends(self) -> None:
        cost = message_cost(1 << 20)
        assert cost is not None
        assert cost.sending_s(1, 1 << 20) > 0
        assert cost.receiving_s(1, 1 << 20) > 0
        assert cost.working_s(1, 1 << 20) > 0


class TestFile:
    def test_it_comes_back_as_it_was(self, profile: Profile, tmp_path: Path) -> None:
        write_profile(tmp_path / "a" / "p.json", profile)
        assert read_profile(tmp_path / "a" / "p.json") == profile

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("forward", Timing(float("nan"), 0.0, 0.0), r"x: block 2 \(MaxPool2d\): forward.median_s is nan; it must"),
            ("backward", Timing(1.0, -2.0, 1.0), r"x: block 2 \(MaxPool2d\): backward.low_s is -2.0"),
            ("saved_bytes", -1, r"x: block 2 \(MaxPool2d\): saved_bytes is -1"),
        ],
    )
    def test_impossible_numbers_name_block_and_node(
        self, profile: Profile, field: str, value: object, message: str
    ) -> None:
        block = msgspec.structs.replace(profile.blocks[2], **{field: value})
        with pytest.raises(JobError, match=message):
            check_profile(msgspec.structs.replace(profile, blocks={**profile.blocks, 2: block}), "x")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"blocks": {}}, "node-1: the profile is empty"),
            ({"version": 9}, "version 9, this zmpsl reads 1"),
            ({"task_s": float("inf")}, "task_s is inf"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"model_blocks": 3}, "block 3 is not one of the model's 3"),
        ],
    )
    def test_impossible_profiles_are_refused(self, profile: Profile, changes: dict[str, object], message: str) -> None:
        with pytest.raises(JobError, match=message):
            check_profile(msgspec.structs.replace(profile, **changes), "node-1")

    @pytest.mark.parametrize(
        ("fingerprint", "samples", "optimizer", "wanted", "message"),
        [
            ("other", 16, "sgd+momentum", [1], "the job's has other"),
            (None, 32, "sgd+momentum", [1], "for 16 samples at a time, the job passes 32"),
            (None, 16, "adam", [1], r"for optimiser sgd\+momentum, the job has adam"),
            (None, 16, "sgd+momentum", [1, 7, 8], "lacks block 7, 8 of digits_cnn"),
        ],
    )
    def test_a_profile_of_something_else_is_refused(
        self, profile: Profile, fingerprint: str | None, samples: int, optimizer: str, wanted: list[int], message: str
    ) -> None:
        with pytest.raises(JobError, match=message):
            require(profile, "node-0", fingerprint or profile.fingerprint, samples, optimizer, wanted)

    @pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', "[1, 2", '{"blocks": {"a": 1}}'])
    def test_a_file_that_is_no_profile_is_named(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_text(text)
        with pytest.raises(JobError, match=r"p.json: is no profile: .*write one with `zmpsl profile`"):
            read_profile(path)

    def test_no_file_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match=r"none\.json: cannot be read"):
            read_profile(tmp_path / "none.json")
