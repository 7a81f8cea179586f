from diffalign.core import DiffalignError, nearest, unknown


def test_nearest_ignores_case_and_orders_by_likeness():
    assert nearest("DIFUSION_DPO", ["kto", "diffusion_kto", "diffusion_dpo"])[0] == "diffusion_dpo"


def test_nearest_of_nothing_alike_is_empty():
    assert nearest("zzz", ["dpo", "kto"]) == []


def test_nearest_is_bounded():
    assert len(nearest("abc", [f"abc{digit}" for digit in range(10)], n=2)) == 2


def test_unknown_without_a_near_name_lists_what_there_is():
    error = unknown("reward", "zzz", ["hps", "clip"])
    assert isinstance(error, DiffalignError)
    assert str(error) == "unknown reward 'zzz' (known: clip, hps)"


def test_unknown_keeps_a_long_list_readable():
    assert str(unknown("reward", "zzz", [f"n{number:02d}" for number in range(40)])).endswith("n29 and 10 more)")


def test_unknown_says_when_nothing_is_known():
    assert "(known: none)" in str(unknown("reward", "hps", []))
