# SPDX-License-Identifier: Apache-2.0
"""A file of choices loses nothing to other writers, to a kill, to damage or to a full disk, and stays small."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream import env
from slipstream.runtime import cache_folder, choice_file
from slipstream.runtime.choice_file import Busy, Choice, ChoiceFile

HERE = {"cpu": "a", "torch": "2"}
WRITER = """
import sys
from slipstream.runtime.choice_file import Choice, ChoiceFile
folder, name, count = sys.argv[1:]
file = ChoiceFile(folder, {"cpu": "a", "torch": "2"})
for number in range(int(count)):
    file.append({f"{name} {number}": Choice("ours", 2.0, 1.0, 2, 1e-11, number)})
    print(number, flush=True)
"""


def choice(way="ours", at=0):
    return Choice(way, 2.0, 1.0, 2, 1e-11, at)


def writer(folder, name, count, **options):
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def file(tmp_path):
    return ChoiceFile(str(tmp_path / "cache"), HERE)


def test_what_is_appended_is_read_and_the_later_row_counts(file):
    assert file.read() == {}
    file.append({"q": choice(at=1), "r": choice("original")})
    file.append({"q": choice(at=2)})
    assert file.read() == {"r": choice("original"), "q": choice(at=2)}
    assert list(file.read()) == ["r", "q"]
    assert choice_file.count(file.path) == 2


def test_measurements_that_disagree_are_contested_until_two_agree(file):
    for way, contested in (("ours", False), ("original", True), ("original", False), ("ours", True)):
        file.append({"q": choice(way)})
        assert file.read()["q"] == choice(way)._replace(contested=contested)


@pytest.mark.parametrize("other", [{"cpu": "b", "torch": "2"}, {"cpu": "a", "torch": "3"}, {"cpu": "a"}])
def test_other_surroundings_have_another_file(file, other):
    file.append({"q": choice()})
    assert ChoiceFile(file.folder, other).read() == {}
    assert choice_file.files(file.folder) == [file.path]


def test_processes_that_write_at_once_lose_nothing(file):
    started = [writer(file.folder, f"p{number}", 60) for number in range(5)]
    assert [process.communicate(timeout=60)[0].count("\n") for process in started] == [60] * 5
    assert set(file.read()) == {f"p{number} {row}" for number in range(5) for row in range(60)}


def test_processes_that_write_while_others_drop_the_oldest_lose_nothing_new(file, monkeypatch):
    monkeypatch.setattr(choice_file, "MOST_BYTES", 12_000)
    started = [writer(file.folder, f"p{number}", 40) for number in range(2)]
    for number in range(200):
        file.append({f"mine {number}": choice(at=10**9 + number)})
        assert f"mine {number}" in file.read()
    assert [process.communicate(timeout=60)[0].count("\n") for process in started] == [40] * 2
    assert os.path.getsize(file.path) <= 12_000 + 40 * 2 * 100


def test_a_writer_that_is_killed_leaves_what_it_had_written(file):
    process = writer(file.folder, "killed", 10**6)
    said = [process.stdout.readline() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    said += process.communicate(timeout=60)[0].splitlines(keepends=True)
    done = sum(line.endswith("\n") for line in said)
    file.append({"after": choice()})
    assert {f"killed {number}" for number in range(done)} | {"after"} <= set(file.read())


def test_a_row_torn_by_a_kill_costs_that_row_alone(file):
    file.append({"whole": choice(), "torn": choice()})
    os.truncate(file.path, os.path.getsize(file.path) - 20)
    assert set(file.read()) == {"whole"}
    file.append({"after": choice()})
    assert set(file.read()) == {"whole", "after"}


@given(noise=st.binary(max_size=60), place=st.integers(0, 400))
def test_no_damage_is_an_error(tmp_path_factory, noise, place):
    file = ChoiceFile(str(tmp_path_factory.mktemp("cache")), HERE)
    file.append({"first": choice(), "second": choice()})
    with open(file.path, "rb") as whole:
        content = whole.read()
    with open(file.path, "wb") as damaged:
        damaged.write(content[:place] + noise + content[place:])
    assert all(type(row) is Choice for row in file.read().values())
    file.append({"after": choice()})
    assert file.read()["after"][:2] == ("ours", 2.0)


@pytest.mark.parametrize(
    "line", ["[" * 5000, '"q"\t' + "[" * 5000, "{}", '"q"', '"q"\t', '"q"\tnull', '"q"\t["ours"]',
             '1\t["ours", 2.0, 1.0, 2, 1e-11, 0, false]',
             '"q"\t["ours", "2", 1.0, 2, 1e-11, 0, false]', '"q"\t["ours", 2.0, 1.0, 2, 1e-11, 0, false, 1]'],
)  # fmt: skip
def test_lines_of_another_form_are_passed_over(file, line):
    file.append({"before": choice()})
    with open(file.path, "a") as damaged:
        damaged.write(line + "\n")
    file.append({"after": choice()})
    assert set(file.read()) == {"before", "after"}


def test_without_room_nothing_is_half_written(file):
    file.append({"before": choice()})
    size = os.path.getsize(file.path)
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 10}, {size + 10}))\n"
    )
    command = [sys.executable, "-c", code + WRITER, file.folder, "full", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert os.path.getsize(file.path) == size and set(file.read()) == {"before"}


def test_where_no_folder_can_be_the_error_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    file = ChoiceFile(str(tmp_path / "file" / "cache"), HERE)
    with pytest.raises(OSError):
        file.append({"q": choice()})


def test_a_file_that_cannot_be_written_is_still_read(file):
    file.append({"q": choice()})
    os.chmod(file.path, 0o444)
    os.chmod(file.folder, 0o555)
    try:
        if not os.access(file.path, os.W_OK):  # to root every file can be written
            with pytest.raises(PermissionError):
                file.append({"r": choice()})
        assert set(file.read()) >= {"q"}
    finally:
        os.chmod(file.folder, 0o755)


def test_a_lock_that_is_not_given_back_is_not_waited_for(file):
    file.append({"q": choice()})
    with open(file.path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            file.append({"r": choice()})
    file.append({"r": choice()})
    assert set(file.read()) == {"q", "r"}


def test_a_child_forked_while_writing_does_not_keep_the_lock(file):
    file.append({"before": choice()})
    with file._locked():
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
    try:
        file.append({"q": choice()})
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert set(file.read()) == {"before", "q"}


def test_the_oldest_rows_go_first(file):
    row = len(choice_file._row("q 00000", choice(at=10**9)))
    most = choice_file.MOST_BYTES // row + 10
    file.append({f"q {number:05}": choice(at=10**9 + number) for number in range(most)})
    assert os.path.getsize(file.path) <= choice_file.MOST_BYTES // 2 + 200
    assert list(file.read())[-1] == f"q {most - 1:05}" and "q 00000" not in file.read()


def test_files_of_builds_long_gone_go(tmp_path):
    for number in range(choice_file.MOST_FILES + 3):
        file = ChoiceFile(str(tmp_path), {"build": str(number)})
        file.append({"q": choice()})
        os.utime(file.path, (number, number))
    left = choice_file.files(str(tmp_path))
    assert len(left) == choice_file.MOST_FILES and file.path in left
    assert ChoiceFile(str(tmp_path), {"build": "0"}).path not in left


@pytest.mark.parametrize("value", ["off", "0", "no", "False"])
def test_the_folder_can_be_switched_off(monkeypatch, value):
    monkeypatch.setenv(env.CACHE, value)
    assert cache_folder.folder() is None and env.CACHE in cache_folder.why_none()


def test_the_folder_is_named_or_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(env.CACHE, str(tmp_path))
    assert cache_folder.folder() == str(tmp_path)
    monkeypatch.delenv(env.CACHE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder.folder() == str(tmp_path / ".cache/slipstream")


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv(env.CACHE)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder.folder() is None and "home" in cache_folder.why_none()
