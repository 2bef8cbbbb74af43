"""Files that are written while the run goes on: in order, a bounded number at a time, and no error is lost."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from orchestrator.errors import FileNotWritten
from orchestrator.report.file_writer import QUEUED, FileWriter


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_files_are_written_in_their_order_by_another_thread(tmp_path: Path) -> None:
    writer, order = FileWriter(100.0), list[str]()

    def write(path: Path) -> None:
        assert threading.current_thread() is not threading.main_thread()
        order.append(path.name)

    for number in range(5):
        writer.put(tmp_path / f"{number}", write)
    writer.close()
    assert order == ["0", "1", "2", "3", "4"]
    assert not [thread for thread in threading.enumerate() if thread is writer._thread and thread.join(60)]


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """The run waits for the disk, and does not fill the memory."""
    writer, go_on, begun = FileWriter(100.0), threading.Event(), list[str]()

    def write(path: Path) -> None:
        begun.append(path.name)
        assert go_on.wait(100)

    for number in range(QUEUED):
        writer.put(tmp_path / f"{number}", write)
    more = threading.Thread(target=lambda: writer.put(tmp_path / "more", write))
    more.start()
    more.join(0.05)
    assert more.is_alive() and len(begun) <= 1
    go_on.set()
    more.join(100)
    writer.close()
    assert begun == [*map(str, range(QUEUED)), "more"]


def test_a_file_that_cannot_be_written_is_named_once_and_the_others_are_written(tmp_path: Path) -> None:
    writer, written = FileWriter(100.0), list[str]()
    for number in range(4):
        writer.put(tmp_path / f"{number}", full if number in (1, 2) else lambda path: written.append(path.name))
    writer.wait()
    with pytest.raises(FileNotWritten, match=r"1 could not be written: No space left on device; go on with --resume"):
        writer.check()
    writer.check()
    writer.close()
    assert written == ["0", "3"]


def test_an_error_that_nobody_has_asked_for_is_raised_at_the_end(tmp_path: Path) -> None:
    writer = FileWriter(100.0)

    def fault(path: Path) -> None:
        raise TypeError("a fault of ours")

    writer.put(tmp_path / "x", fault)
    with pytest.raises(FileNotWritten, match=r"x could not be written: TypeError\('a fault of ours'\)") as raised:
        writer.close()
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_disk_that_does_not_answer_is_waited_for_once(tmp_path: Path) -> None:
    writer, go_on = FileWriter(0.01), threading.Event()
    writer.put(tmp_path / "x", lambda path: go_on.wait(100) and None)
    writer.wait()
    with pytest.raises(
        FileNotWritten, match=r"x was not written within 0\.01 s; look at its disk, or raise deadlines\.s"
    ):
        writer.check()
    writer.put(tmp_path / "y", lambda path: None)
    writer.close()
    go_on.set()
