"""Work in threads: results in order, torch's settings as before, modes handed on."""

import threading

import pytest
import torch

from mask_former.inference.tensor_ops import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_keep_the_order_of_the_items(threads):
    assert side_by_side(lambda item: item**2, range(50), CPU) == [item**2 for item in range(50)]
    assert side_by_side(lambda item: item, [], CPU) == []


def test_torch_uses_one_thread_in_each_and_as_many_as_before_afterwards(threads):
    used = side_by_side(lambda _: (torch.get_num_threads(), threading.get_ident()), range(8), CPU)
    assert {count for count, _ in used} == {1}
    assert len({ident for _, ident in used}) <= threads
    assert torch.get_num_threads() == threads


def test_an_error_comes_through_and_leaves_the_settings(threads):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 // item, [1, 0], CPU)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_nothing_takes_a_gradient(mode, threads):
    weight = torch.ones(3, requires_grad=True)
    with mode():
        expected = torch.is_inference_mode_enabled()
        results = side_by_side(lambda item: weight * item, range(4), CPU)
    assert not any(result.requires_grad for result in results)
    assert all(result.is_inference() == expected for result in results)
