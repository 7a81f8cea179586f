import json
import os
import signal
import subprocess
import sys

import pytest

from diffalign.core import DiffalignError, folder_lock

HOLD = """
import sys, time
from diffalign.core import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_makes_the_folder_and_names_its_holder(tmp_path):
    with folder_lock(tmp_path / "new"):
        assert json.loads((tmp_path / "new" / ".lock").read_text())["pid"] == os.getpid()


def test_a_second_block_is_refused_and_the_first_goes_on(tmp_path):
    with folder_lock(tmp_path):
        for _ in range(2):  # the refusal must not free or empty the holder's lock
            with pytest.raises(DiffalignError, match=f"in use by process {os.getpid()} on "), folder_lock(tmp_path):
                pass


def test_the_lock_is_free_after_the_block_even_if_it_failed(tmp_path):
    with pytest.raises(RuntimeError), folder_lock(tmp_path):
        raise RuntimeError
    with folder_lock(tmp_path):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DiffalignError, match=f"process {process.pid} on "), folder_lock(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with folder_lock(tmp_path):
        pass


def test_a_holder_that_has_not_signed_yet(tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(DiffalignError, match="in use by another process"), folder_lock(tmp_path):
            pass


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffalignError, match="cannot use"), folder_lock(tmp_path / "file"):
        pass
