"""The address line and the log forms."""

import json
import logging
import socket
import sys

from adapter.service.server import JsonLines, address


def test_addresses_are_urls():
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        four.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        assert address(four) == f"http://127.0.0.1:{four.getsockname()[1]}"
        assert address(six) == f"http://[::1]:{six.getsockname()[1]}"


def test_json_logs_are_one_object_a_line():
    try:
        raise ValueError("odd")
    except ValueError:
        record = logging.LogRecord("a", 40, "f", 1, "x\n%s", ("y",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("ERROR", "a", "x\ny")
    assert "ValueError: odd" in told["exception"]
