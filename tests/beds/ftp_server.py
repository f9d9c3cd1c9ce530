"""A real FTP server (pyftpdlib) that misbehaves on request; run by the bed's own Python, never imported by tests.

Each line on stdin is a JSON object: ``{"set": {...}}`` replaces the faults, ``{"log": 1}`` asks for the commands since
the last time. Each is answered by a line on stdout. Faults (lists are used up from the left):

``short``: bytes after which a download ends with a 226; ``lost``: after which an upload forgets the rest, with a 226;
``hold``: after which an upload is not read any more, nor its end seen;
``hangup``: after which a transfer's both connections are closed; ``mute``: how often a 226 is not said;
``gone``: how often the control connection ends instead of a 226; ``stall``: how often a RETR sends nothing;
``stuck``: how often a STOR reads nothing; ``answers``: by command, replies in place of doing it;
``without``: commands that are not served;
``pasv``: the address of PASV's answer; ``dead_epsv``: EPSV names a closed port; ``once``: RNTO does not replace;
``dos``: LIST in DOS's form; ``listing``: the text of every listing, over and over if ``endless``;
``alone``: what came together with a command is forgotten;
``sessions``: more get 421; ``no_stream``: FEAT does not offer REST.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import DTPHandler, FTPHandler, TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer

FAULTS: dict = {}
LOG: list[str] = []


def take(name):
    """The next of a list of faults, or None; a number counts down."""
    value = FAULTS.get(name)
    if isinstance(value, list) and value:
        return value.pop(0)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        FAULTS[name] = value - 1
        return True
    return None


class Failing:
    """A file that ends or forgets, or takes its session down."""

    def __init__(self, file, handler, reading):
        self._file, self._handler, self._done = file, handler, 0
        self._short = take("short") if reading else None
        self._lost = None if reading else take("lost")
        self._hold = None if reading else take("hold")
        self._hangup = take("hangup")

    def __getattr__(self, name):
        return getattr(self._file, name)

    def _hang_up(self):
        if self._hangup is not None and self._done >= self._hangup:
            self._hangup = None
            self._handler.ioloop.call_later(0, self._handler.close)
            return True
        return False

    def read(self, count=-1):
        for limit in (self._short, self._hangup):
            if limit is not None:
                count = min(count, limit - self._done)
        if self._hang_up() or count == 0:
            return b""
        data = self._file.read(count)
        self._done += len(data)
        return data

    def write(self, data):
        keep = data
        for limit in (self._lost, self._hangup):
            if limit is not None:
                keep = keep[: max(0, limit - self._done)]
        self._file.write(keep)
        self._done += len(keep)
        if self._hold is not None and self._done >= self._hold:
            self._file.flush()
            self._handler.ioloop.call_later(0, self._handler.data_channel.del_channel)
            self._hold = None
        if self._hangup is not None and self._done >= self._hangup:
            self._file.flush()
            self._hang_up()
        return len(data)


def forged():
    while True:
        yield FAULTS.get("listing", "").encode()
        if not FAULTS.get("endless"):
            return


class Files(AbstractedFS):
    def open(self, filename, mode):
        return Failing(super().open(filename, mode), self.cmd_channel, "r" in mode and "+" not in mode)

    def format_mlsx(self, *args, **more):
        return forged() if FAULTS.get("listing") else super().format_mlsx(*args, **more)

    def format_list(self, basedir, listing, ignore_err=True):
        if FAULTS.get("listing"):
            yield from forged()
            return
        if not FAULTS.get("dos"):
            yield from super().format_list(basedir, listing, ignore_err)
            return
        for name in listing:
            path = os.path.join(basedir, name)
            what = "<DIR>         " if os.path.isdir(path) else f"{os.path.getsize(path):>14}"
            yield f"01-02-26  03:04PM {what:>20} {name}\r\n".encode("utf8", self.cmd_channel.unicode_errors)


class Mixed:
    use_sendfile = False
    abstracted_fs = Files
    banner = "a server of tests"
    unicode_errors = "surrogateescape"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if FAULTS.get("pasv"):
            self.masquerade_address = FAULTS["pasv"]

    def handle(self):
        if FAULTS.get("sessions") is not None and len(self.server.ip_map) > FAULTS["sessions"]:
            self.handle_max_cons()
            return
        super().handle()

    def pre_process_command(self, line, cmd, arg):
        LOG.append(line)
        if FAULTS.get("alone"):
            self.ac_in_buffer = b""
        if cmd in FAULTS.get("without", ()):
            self.respond(f"502 {cmd} is not served")
            return
        scripted = FAULTS.get("answers", {}).get(cmd)
        if scripted:
            answer = scripted.pop(0)
            if answer:
                if answer == "hang up":
                    self.close()
                elif answer != "say nothing":
                    self.respond(answer)
                return
        if cmd == "FEAT" and (FAULTS.get("no_stream") or FAULTS.get("without")):
            hidden = {*FAULTS.get("without", ()), *(["REST"] if FAULTS.get("no_stream") else [])}
            if "MLSD" in hidden:
                hidden.add("MLST")
            known = ["EPSV", "MLST", "REST STREAM", "SIZE", "UTF8", "TVFS"]
            self.push("211-Features:\r\n")
            self.push("".join(f" {one}\r\n" for one in known if one.split()[0] not in hidden))
            self.respond("211 End")
            return
        super().pre_process_command(line, cmd, arg)

    def ftp_EPSV(self, line):
        if not FAULTS.get("dead_epsv"):
            return super().ftp_EPSV(line)
        self.respond("229 Entering extended passive mode (|||1|).")
        return None

    def ftp_RETR(self, file):
        if take("stall"):
            self.respond("150 File status okay. About to open data connection.")
            return None
        return super().ftp_RETR(file)

    def ftp_STOR(self, file, mode="w"):
        if take("stuck"):
            self.respond("150 Ok to send data.")
            return None
        return super().ftp_STOR(file, mode)

    def ftp_RNTO(self, path):
        if FAULTS.get("once") and os.path.lexists(path):
            self._rnfr = None
            self.respond("550 There is such a file.")
            return None
        return super().ftp_RNTO(path)

    def respond(self, resp, *more, **options):
        if resp.startswith("226 Transfer"):
            if take("mute"):
                return
            if take("gone"):
                self.close()
                return
        super().respond(resp, *more, **options)


class Handler(Mixed, FTPHandler):
    dtp_handler = DTPHandler


class SecureHandler(Mixed, TLS_FTPHandler):
    dtp_handler = TLS_DTPHandler
    tls_control_required = True
    tls_data_required = True


def listen():
    for line in sys.stdin:
        message = json.loads(line)
        if "set" in message:
            FAULTS.clear()
            FAULTS.update(message["set"])
            answer: object = "ok"
        else:
            # The other thread appends meanwhile.
            answer = list(LOG)
            del LOG[: len(answer)]
        print(json.dumps(answer), flush=True)
    os._exit(0)


def main():
    root, home, certificate = sys.argv[1:4]
    authorizer = DummyAuthorizer()
    authorizer.add_user("lab", "lab:secret/1", os.path.join(root, home) if home else root, perm="elradfmwMT")
    authorizer.add_anonymous(root, perm="elradfmwMT")
    handler = SecureHandler if certificate else Handler
    handler.authorizer = authorizer
    handler.timeout = 300
    handler.auth_failed_timeout = 0
    if certificate:
        from OpenSSL import SSL

        handler.certfile = certificate
        context = SecureHandler.get_ssl_context()
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
    logging.basicConfig(level=logging.ERROR)
    server = FTPServer(("127.0.0.1", 0), handler)
    server.max_cons = 200
    print(json.dumps(server.address[1]), flush=True)
    threading.Thread(target=listen, daemon=True).start()
    # A short tick: faults that close a session are due at once.
    while True:
        server.serve_forever(timeout=0.05, blocking=False)
        time.sleep(0)


main()
