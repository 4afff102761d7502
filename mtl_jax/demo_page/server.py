"""The page's server: it answers browsers on this machine alone, and refuses what another site may have sent.

It listens on the loopback address. A page of another site could still have a browser ask it, so a request must be for
a name of this machine (against names that are made to point here, "DNS rebinding") and come from the page itself.
Nothing is read from or written to the disk on a request: the page's files are read before, all else is in memory.
"""

import errno
import json
import os
import re
import socketserver
import sys
import threading
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from mtl_jax.demo_page.album import Album
from mtl_jax.errors import ConfigError, MtlError

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
MAX_BYTES = 64 * 2**20  # of a photograph's file
MAX_UPLOADS = 4  # at the same time
SECONDS = 30  # without a byte, then a connection is closed
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Cache-Control": "no-store",  # or the browser would write photographs to the disk
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}  # fmt: skip


class Refused(Exception):
    """A request that is not answered: an HTTP status, and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server(ThreadingHTTPServer):
    """Listens from the beginning; answers within `serve_forever`, once `album` is set."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would let two programs listen on one port
    album: Album

    def __init__(self, port: int) -> None:
        """Listens on a port of the loopback address, 0 for any that is free. Raises ConfigError."""
        files = [file for file in Path(__file__).parent.iterdir() if file.suffix in KINDS]
        self.content = {f"/{file.name}": (KINDS[file.suffix], file.read_bytes()) for file in files}
        self.content["/"] = self.content["/page.html"]
        self.uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OverflowError:
            raise ConfigError(f"--port={port}: expected 0 to 65535") from None
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "another program listens on it" if taken else error.strerror
            raise ConfigError(f"--port={port}: {reason}; give another one, or --port=0 for any that is free") from None

    def server_bind(self) -> None:
        """Binds; that of `HTTPServer` also asks for this machine's name, perhaps over the network."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port

    @property
    def address(self) -> str:
        """What to type into a browser."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows the traceback of a fault, not that a browser has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mtl_jax", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """The page's files, its state as JSON, thumbnails."""
        self._handle()

    def do_POST(self) -> None:
        """Adds and changes classes and photographs."""
        self._handle()

    def do_DELETE(self) -> None:
        """Removes them."""
        self._handle()

    def log_message(self, *words: Any) -> None:
        """Nothing: the terminal is for the address and for faults."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what is not HTTP, or a method that nothing here has."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def _handle(self) -> None:
        try:
            self._check_sender()
            kind, content = self._answer()
        except Refused as refusal:
            self._refuse(refusal.status, str(refusal))
        except MtlError as error:
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, *_json({"error": str(error)}))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            traceback.print_exc()
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "A fault of the program: its terminal shows where.")
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _check_sender(self) -> None:
        """Raises Refused unless the request is from this page, or from a program on this machine."""
        hosts = self.headers.get_all("Host") or [""]
        if len(hosts) > 1 or re.sub(r":\d*$", "", hosts[0].lower()) not in NAMES:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"This page is at {self.server.address} alone.")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        is_own = origin == f"http://{hosts[0]}" if origin or self.command != "GET" else True
        if not is_own or site not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, f"Only the page itself may ask for that: open {self.server.address}")

    def _answer(self) -> tuple[str, bytes]:
        """The kind and content of the answer to a request. Raises Refused or MtlError."""
        try:
            url = urlsplit(self.path)
            fields = dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=4))
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "Not an address of this page.") from None
        match = re.fullmatch(r"(/[a-z.]*)(?:/([1-9]\d{0,8}))?", url.path, re.ASCII)
        what, number = (match[1], int(match[2] or 0)) if match else ("", 0)
        album, request = self.server.album, (self.command, what, number > 0)
        if request == ("POST", "/photographs", False):
            with self.server.uploads:
                return _json({"id": album.add(self._body(), fields.get("name", ""), _number(fields))})
        if self._length():
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Only a photograph has content.")
        match request:
            case ("GET", _, False) if file := self.server.content.get(what):
                return file
            case ("GET", "/state", False):
                return _json({**album.state(), "max_bytes": MAX_BYTES})
            case ("GET", "/thumbnails", True) if photograph := album.photographs.get(number):
                return "image/jpeg", photograph.thumbnail
            case ("POST", "/classes", False):
                return _json({"id": album.add_class(fields.get("name", ""))})
            case ("POST", "/classes", True) if number in album.classes:
                album.rename(number, fields.get("name", ""))
            case ("POST", "/photographs", True):
                album.move(number, _number(fields))
            case ("DELETE", "/classes", True):
                album.remove_class(number)
            case ("DELETE", "/photographs", True):
                album.remove(number)
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing of that name.")
        return _json({})

    def _length(self) -> int:
        """The bytes of content that follow. Raises Refused where that is not said, or too many."""
        text = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "The length of the content must be given.")
        if int(text) > MAX_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Files of more than {MAX_BYTES >> 20} MB are refused.")
        return int(text)

    def _body(self) -> bytes:
        length = self._length()
        raw = self.rfile.read(length)
        if len(raw) < length:
            raise ConnectionResetError
        return raw

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # what follows on it may be content that was not read
        self._send(status, *_json({"error": reason}))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(content), **HEADERS}
        for name, value in headers.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _number(fields: dict[str, str]) -> int:
    """The number of the class in a request's fields, 0 for none. Raises Refused."""
    if not re.fullmatch(r"\d{1,9}", text := fields.get("class", "0"), re.ASCII):
        raise Refused(HTTPStatus.BAD_REQUEST, "A class is given by its number.")
    return int(text)


def _json(content: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()
