"""Layers to places: llama.cpp's rounding, and numbers that it cannot round."""

from __future__ import annotations

from agentmesh.inference.logic.split import llama_layers, numbers_for, spread


def test_shares_in_bytes_are_cut_where_llama_cpp_cuts_them() -> None:
    # 16 blocks and the output over 3:1: running shares 0.75 and 1; layer 12 of 17 is at 0.706, layer 13 at 0.765.
    assert llama_layers([3, 1], 17) == (13, 4)


def test_whole_numbers_of_layers_are_given_exactly() -> None:
    assert llama_layers([7, 3, 5], 15) == (7, 3, 5)


def test_a_device_with_the_number_zero_gets_nothing() -> None:
    assert llama_layers([0, 5, 0, 3], 8) == (0, 5, 0, 3)


def test_layers_go_in_proportion_to_the_rooms() -> None:
    assert spread([10] * 40, [300, 100, 200], [0, 1, 1]) == (20, 7, 13)


def test_no_place_gets_more_than_its_room_even_if_the_proportion_says_so() -> None:
    # The last layers are three times as large: by proportion the second place would get three of them.
    counts = spread([10, 10, 10, 10, 30, 30, 30], [70, 80], [0, 1])
    assert counts == (5, 2)


def test_what_fits_only_with_every_room_filled_is_found() -> None:
    assert spread([10] * 10, [30, 30, 40], [0, 1, 1]) == (3, 3, 4)


def test_what_does_not_fit_is_said_not_squeezed() -> None:
    assert spread([10] * 10, [30, 30, 39], [0, 1, 1]) is None


def test_a_layer_larger_than_every_room_fits_nowhere() -> None:
    assert spread([10, 500, 10], [200, 200], [0, 1]) is None


def test_a_worker_gets_a_layer_though_the_host_could_take_all() -> None:
    assert spread([10] * 4, [1000, 10], [0, 1]) == (3, 1)


def test_a_host_without_room_gets_nothing() -> None:
    assert spread([10] * 4, [0, 100], [0, 1]) == (0, 4)


def test_the_output_counts_as_a_layer_of_the_last_device() -> None:
    assert numbers_for((3, 4)) == (3, 5)
