"""What a runner may ask the gateway about storage: ``POST attempts/{task}/{number}/access``, and the answers.

The runner holds no credentials of object stores: it asks for presigned requests, in batches and when it needs them, and
sends the bytes itself. The gateway answers only for URLs that are an input's or an output's of this task, or lie below
one. Everything here may be asked again; nothing here is ever written down by a runner but names of uploads.

One message holds any number of questions of one kind; the answer has one entry for each, in their order.
Sizes are bytes, spans are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from .wire import WIRE

__all__ = [
    "AccessAnswer",
    "AccessRequest",
    "Completion",
    "Fault",
    "Found",
    "ListQuestion",
    "Login",
    "Page",
    "PartsQuestion",
    "Signed",
    "StoreQuestion",
    "Upload",
]


@dataclass
class Fault:
    """Why one question has no answer."""

    sentence: str
    """For the task's owner: what happened and what to do, beginning with the URL."""
    kind: str = "refused"
    """``missing`` (there is no such thing), ``refused`` (never), ``lease`` (the publish lease is not held: get it, ask
    again) or ``passing`` (ask again in a moment)."""


@dataclass
class Signed:
    """One HTTP request that may be sent as it stands; the body and ``content-length`` are the runner's own."""

    method: str
    url: str = field(repr=False)
    headers: Dict[str, str] = field(default_factory=dict, repr=False)
    """To be sent exactly so. A ``range`` header may be added to a GET."""
    expires_in: float = 0.0
    """Seconds for which the server takes it, counted from before the question was sent."""


@dataclass
class Found:
    """What an input's URL leads to."""

    url: str
    kind: str = "file"
    """``file``; ``directory``: something lies below it, list it; ``elsewhere``: stage `moved_to` in its place."""
    size: Optional[int] = None
    etag: Optional[str] = None
    """As the server sends it, quotes included; a read may pin it with ``if-match``."""
    checksum: Dict[str, str] = field(default_factory=dict)
    """Of the whole object, by the store's name of the algorithm (``crc32``, ``crc32c``, ``crc64nvme``, ``sha1``,
    ``sha256``, ``md5``): base64. A composite one (of parts) is not listed."""
    get: Optional[Signed] = None
    moved_to: Optional[str] = field(default=None, repr=False)
    """A URL of a kind that runners serve (a DRS object's access URL)."""
    headers: Dict[str, str] = field(default_factory=dict, repr=False)
    """For `moved_to` over http(s): sent to its own host only, kept in memory only."""
    fault: Optional[Fault] = None


@dataclass
class ListQuestion:
    """One page of what lies below an input's URL."""

    url: str
    after: Optional[str] = None
    """`Page.after` of the page before."""
    limit: int = 1000


@dataclass
class Page:
    """Objects below a URL, in the store's order; each `Found.url` is the object's own, percent-encoded."""

    objects: List[Found] = field(default_factory=list)
    names: List[str] = field(default_factory=list)
    """Of each object: its key below the listed one, decoded, as the store has it. It may be hostile as a file name. One
    that ends in ``/`` is an empty directory's marker."""
    after: Optional[str] = None
    """None: that was the last page."""
    fault: Optional[Fault] = None


@dataclass
class StoreQuestion:
    """One file to be stored by a single PUT: visible at once, so this is answered under the publish lease only."""

    url: str
    size: int
    checksum: Dict[str, str] = field(default_factory=dict)
    """Of the body; signed into the headers where the store checks it."""


@dataclass
class Upload:
    """A multipart upload: invisible until it is completed, and begun without a lease."""

    url: str
    id: str = ""
    size: int = 0
    """Of the whole file; from it the gateway chooses `part_size`."""
    part_size: int = 0
    algorithm: Optional[str] = None
    """The checksum that parts are to carry, by the store's name; None: the store has none, etags are compared."""
    fault: Optional[Fault] = None


@dataclass
class PartsQuestion:
    """Presigned requests for parts of an upload."""

    url: str
    id: str
    numbers: List[int]
    """From 1 on."""
    checksums: List[str] = field(default_factory=list)
    """One for each part where the upload has an algorithm: base64."""
    sizes: List[int] = field(default_factory=list)


@dataclass
class Completion:
    """An upload whose parts are all there; the gateway completes it, under the publish lease only."""

    url: str
    id: str
    etags: List[str]
    """Of the parts, from 1 on."""
    checksums: List[str] = field(default_factory=list)
    size: int = 0
    done: bool = False
    fault: Optional[Fault] = None


@dataclass
class Login:
    """Who to be on a server, for one URL. Kept in memory only."""

    url: str
    user: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)
    headers: Dict[str, str] = field(default_factory=dict, repr=False)
    """For http(s): to be sent to this URL's own origin only, never after a redirect to another."""
    options: Dict[str, str] = field(default_factory=dict)
    """What the kind of server needs besides, such as ``tls``: documented where it is read."""
    fault: Optional[Fault] = None


@dataclass
class AccessRequest:
    """Body of ``access``: questions of one kind."""

    instance: str = ""
    look: List[str] = field(default_factory=list)
    """Inputs' URLs, or URLs below them: answered by `AccessAnswer.found`."""
    page: Optional[ListQuestion] = None
    store: List[StoreQuestion] = field(default_factory=list)
    begin: List[Upload] = field(default_factory=list)
    """Uploads to begin (or to find again by their id): answered by `AccessAnswer.uploads`."""
    parts: Optional[PartsQuestion] = None
    complete: List[Completion] = field(default_factory=list)
    abort: List[Upload] = field(default_factory=list)
    """Gone already is success."""
    login: List[str] = field(default_factory=list)
    wire: int = WIRE


@dataclass
class AccessAnswer:
    """What was asked for."""

    found: List[Found] = field(default_factory=list)
    page: Optional[Page] = None
    signed: List[Signed] = field(default_factory=list)
    """For `store` and `parts`."""
    faults: List[Optional[Fault]] = field(default_factory=list)
    """For `store` and `parts`: one for each, or none at all where nothing is amiss."""
    uploads: List[Upload] = field(default_factory=list)
    completions: List[Completion] = field(default_factory=list)
    logins: List[Login] = field(default_factory=list)
    wire: int = WIRE
