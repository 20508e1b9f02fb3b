"""Checks what the server said, line by line, against the schema of the protocol version that each line belongs to.

    python3 validate.py PATH [PATH ...]        recordings, or folders of them (see record.py); needs PyPI `jsonschema`

Which version holds: a request's own `_meta` (modern), else what the last `initialize` before it agreed on, else
2025-11-25. Each answer is paired with its request by id, in order. Checked are the envelope, the result's or error's
own type, each tool's schemas, structuredContent against the listed outputSchema and against its own text, and the
rules the schemas cannot say: one answer a request, no members beside the envelope's, progress that rises and ends,
no reserved error codes, no lone surrogates, nothing over 9 MiB. Exit 1 on a violation, or when nothing was checked.
"""
import collections
import json
import os
import sys

import jsonschema

HERE = os.path.dirname(os.path.abspath(__file__))
LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"
NOTHING_AGREED = "2025-11-25"
META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_SERVER = "io.modelcontextprotocol/serverInfo"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
ARRAY_MAX = 2_000
MESSAGE_BYTES_MAX = 9 * 1024 * 1024
RESULT_TYPES = {
    "initialize": "InitializeResult",
    "ping": "EmptyResult",
    "server/discover": "DiscoverResult",
    "subscriptions/listen": "SubscriptionsListenResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
}
ERROR_TYPES = {-32022: "UnsupportedProtocolVersionError", -32021: "MissingRequiredClientCapabilityError"}
STANDARD_ERRORS = {-32700, -32600, -32601, -32602, -32603}
SHOWN_MAX = 50


class Schemas:
    """The five published schemas, compiled per type on first use; equal values are checked once."""

    def __init__(self, folder):
        self.documents, self.validators, self.seen = {}, {}, {}
        for version in LEGACY + [MODERN]:
            with open(os.path.join(folder, version + ".json"), encoding="utf-8") as file:
                self.documents[version] = json.load(file)

    def has(self, version, name):
        document = self.documents[version]
        return name in document.get("$defs", document.get("definitions"))

    def problems(self, version, name, value):
        if not self.has(version, name):
            return ["%s has no %s" % (version, name)]
        key = (version, name, json.dumps(value, sort_keys=True))
        if key not in self.seen:
            self.seen[key] = first_problems(self.validator(version, name), value)
        return self.seen[key]

    def validator(self, version, name):
        if (version, name) not in self.validators:
            document = self.documents[version]
            place = "$defs" if "$defs" in document else "definitions"
            schema = {"$schema": document["$schema"], "$ref": "#/%s/%s" % (place, name), place: document[place]}
            self.validators[version, name] = jsonschema.validators.validator_for(schema)(schema)
        return self.validators[version, name]


def first_problems(validator, value):
    """The innermost reason of each failure, shortened: an anyOf names what came closest."""
    found = []
    for error in list(validator.iter_errors(value))[:3]:
        deep = jsonschema.exceptions.best_match([error])
        found.append("%s: %s" % (deep.json_path, deep.message if len(deep.message) < 300 else deep.message[:300] + "…"))
    return found


def json_equal(a, b):
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def is_id(value):
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def member(value, *names):
    """value[name][name]…, None where a step is not an object or has no such member."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


class Request:
    def __init__(self, message, place):
        self.message, self.place = message, place
        self.method = message.get("method")
        self.answer = None  # the message that answered it
        self.answered_at = None  # and where it stood
        self.progress = None  # the last progress seen
        self.version = None  # that holds for its answer

    def token(self):
        return member(self.message, "params", "_meta", "progressToken")


class Recording:
    """One connection."""

    def __init__(self, path):
        self.path, self.violations = path, []
        self.requests, self.outs, self.pairs = [], [], {}
        self.read()
        self.pair()
        self.settle_versions()

    def violation(self, place, text, line=None):
        self.violations.append((self.path, place, text, line))

    def read(self):
        with open(self.path, encoding="utf-8") as file:
            lines = file.read().split("\n")
        unread = ""  # what was written to the server and does not parse yet
        for place, text in enumerate(lines, 1):
            if not text:
                continue
            try:
                entry = json.loads(text)
                direction, line = entry["dir"], entry["line"]
            except (ValueError, KeyError, TypeError):
                if place < len(lines):  # an unfinished last line is a recorder that was killed
                    self.violation(place, "not a line of a recording", text)
                continue
            if direction == "out":
                self.outs.append((place, line, entry.get("partial", False)))
            else:
                for piece in line.split("\n"):  # a test records what it writes at once: several lines, or half a one
                    message, unread = self.parse_request(unread, piece)
                    members = message if isinstance(message, list) else [message]  # an array, as 2025-03-26 has them
                    if len(members) <= ARRAY_MAX:  # a longer one is refused whole
                        for one in members:
                            self.read_request(place, one)

    @staticmethod
    def parse_request(unread, piece):
        for text in (piece, unread + piece):
            try:
                return json.loads(text), ""
            except (ValueError, RecursionError):
                pass
        return None, unread + piece

    def read_request(self, place, message):
        """Anything with an id may be answered under that id, malformed or not."""
        if isinstance(message, dict) and is_id(message.get("id")):
            if message.get("method") is not None or not ("result" in message or "error" in message):
                self.requests.append(Request(message, place))

    def pair(self):
        """Parses what went out and finds the request of each answer: the oldest unanswered one with that id."""
        waiting = collections.defaultdict(list)
        for request in self.requests:
            waiting[type(request.message["id"]), request.message["id"]].append(request)
        parsed = []
        for place, line, partial in self.outs:
            message = self.parse(place, line, partial)
            if message is None:
                continue
            request = None
            if "method" not in message and is_id(message.get("id")):
                same = waiting[type(message["id"]), message["id"]]
                earlier = [r for r in same if r.place < place] or same
                if earlier:
                    request = earlier[0]
                    same.remove(request)
                    request.answer, request.answered_at = message, place
            parsed.append((place, line, message, request))
        self.outs = parsed

    def parse(self, place, line, partial):
        if partial:
            self.violation(place, "the last line is not finished", line)
            return None
        try:
            if len(line.encode("utf-8")) > MESSAGE_BYTES_MAX:
                self.violation(place, "longer than 9 MiB", line)
        except UnicodeEncodeError:
            self.violation(place, "not UTF-8", line)
            return None
        try:
            message = json.loads(line, object_pairs_hook=self.unique(place, line), parse_constant=self.no_constant)
            json.dumps(message, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            self.violation(place, "a lone surrogate in a string", line)
            return None
        except (ValueError, RecursionError) as error:
            self.violation(place, "not JSON: %s" % error, line)
            return None
        if not isinstance(message, dict):
            self.violation(place, "not an object", line)
            return None
        return message

    def unique(self, place, line):
        def hook(pairs):
            members = dict(pairs)
            if len(members) != len(pairs):
                self.violation(place, "a member twice", line)
            return members

        return hook

    @staticmethod
    def no_constant(name):
        raise ValueError(name)

    def settle_versions(self):
        agreed = NOTHING_AGREED
        for request in self.requests:
            asked = member(request.message, "params", "_meta", META_VERSION)
            if request.method == "initialize" and asked not in (MODERN,):
                answered = member(request.answer, "result", "protocolVersion")
                if answered in LEGACY:
                    agreed = answered
            modern = asked == MODERN or request.method in ("server/discover", "subscriptions/listen")
            modern = modern or member(request.answer, "error", "code") in ERROR_TYPES
            request.version = MODERN if modern else agreed

    def agreed_before(self, place):
        """The version of what belongs to no request: the last one agreed in an answer before that line."""
        agreed = NOTHING_AGREED
        for request in self.requests:
            if request.method == "initialize" and request.answered_at and request.answered_at < place:
                version = member(request.answer, "result", "protocolVersion")
                agreed = version if version in LEGACY else agreed
        return agreed

    def output_schemas(self):
        """Tool name to outputSchema (None where it has none), as this connection listed them."""
        listed = {}
        for request in self.requests:
            if request.method == "tools/list":
                for tool in member(request.answer, "result", "tools") or []:
                    listed[member(tool, "name")] = member(tool, "outputSchema")
        return listed


class Check:
    """All messages of one recording."""

    def __init__(self, schemas, recording, listed, counts):
        self.schemas, self.recording, self.counts = schemas, recording, counts
        self.listed = listed
        for self.place, self.line, message, request in recording.outs:
            self.message(message, request)

    def violation(self, text):
        self.recording.violation(self.place, text, self.line)

    def typed(self, version, name, value):
        for problem in self.schemas.problems(version, name, value):
            self.violation("%s %s: %s" % (version, name, problem))

    def message(self, message, request):
        if "method" in message and "id" in message:
            self.counts["?"] += 1
            self.violation("a request from the server, which asks nothing")
        elif "method" in message:
            self.notification(message)
        elif "error" in message:
            self.error(message, request)
        else:
            self.result(message, request)

    def members(self, value, allowed, where):
        extra = sorted(set(value) - set(allowed))
        if extra:
            self.violation("%s has members beside %s: %s" % (where, ", ".join(allowed), ", ".join(extra)))

    # -- notifications

    def notification(self, message):
        version = self.recording.agreed_before(self.place)
        owner = None
        if message["method"] == "notifications/progress":
            owner = self.progress_owner(message)
            version = owner.version if owner else version
        elif message["method"] == "notifications/subscriptions/acknowledged":
            version = MODERN
            self.acknowledged(message)
        self.counts[version] += 1
        self.members(message, ["jsonrpc", "method", "params"], "the notification")
        self.typed(version, "JSONRPCNotification", message)
        self.typed(version, "ServerNotification", message)
        if owner:
            self.rising(owner, message)

    def progress_owner(self, message):
        token = member(message, "params", "progressToken")
        mine = [r for r in self.recording.requests if r.token() == token and type(r.token()) is type(token)]
        live = [r for r in mine if r.place < self.place and (r.answered_at or self.place + 1) > self.place]
        if not mine:
            self.violation("progress for a token that nobody gave: %r" % (token,))
        elif not live:
            self.violation("progress after the answer")
        return (live or mine or [None])[-1]

    def rising(self, owner, message):
        now = member(message, "params", "progress")
        if isinstance(now, (int, float)):
            if owner.progress is not None and now <= owner.progress:
                self.violation("progress does not rise: %r after %r" % (now, owner.progress))
            owner.progress = now

    def acknowledged(self, message):
        named = member(message, "params", "_meta", META_SUBSCRIPTION)
        asked = [r for r in self.recording.requests if r.method == "subscriptions/listen"]
        owner = [r for r in asked if type(r.message["id"]) is type(named) and r.message["id"] == named]
        if not owner:
            self.violation("an acknowledgement that names no subscriptions/listen request")

    # -- answers

    def error(self, message, request):
        version = request.version if request else self.recording.agreed_before(self.place)
        self.counts[version] += 1
        self.members(message, ["jsonrpc", "id", "error"], "the error response")
        self.envelope(version, "JSONRPCErrorResponse", "JSONRPCError", message)
        error = message["error"]
        if isinstance(error, dict):
            self.members(error, ["code", "message", "data"], "the error")
        code = member(error, "code")
        if "id" in message and request is None:
            self.violation("answers no request")
        if "id" not in message and code not in (-32700, -32600):
            self.violation("an error without an id, and no fault of reading: %r" % (code,))
        if code in ERROR_TYPES:
            self.typed(MODERN, ERROR_TYPES[code], message)
        elif isinstance(code, int) and -32768 <= code <= -32000 and code not in STANDARD_ERRORS:
            self.violation("a reserved error code: %d" % code)

    def result(self, message, request):
        version = request.version if request else self.recording.agreed_before(self.place)
        self.counts[version] += 1
        self.members(message, ["jsonrpc", "id", "result"], "the response")
        self.envelope(version, "JSONRPCResultResponse", "JSONRPCResponse", message)
        if request is None:
            self.violation("answers no request, or one that was answered already")
            return
        result, name = message.get("result"), RESULT_TYPES.get(request.method)
        if name is None:
            self.violation("a result for %r, which is not offered" % (request.method,))
            return
        if request.method == "initialize":
            version = self.initialized(result, member(request.message, "params", "protocolVersion"))
        self.typed(version, name, result)
        if name == "EmptyResult":
            self.members(result, ["_meta"], "an empty result")
        if version == MODERN:
            self.modern(result, request)
        if request.method == "tools/list":
            self.tools(version, result)
        elif request.method == "tools/call":
            self.called(version, member(request.message, "params", "name"), result)

    def envelope(self, version, newer, older, message):
        self.typed(version, "JSONRPCMessage", message)
        self.typed(version, newer if self.schemas.has(version, newer) else older, message)

    def initialized(self, result, asked):
        version = member(result, "protocolVersion")
        if version != (asked if asked in LEGACY else LEGACY[-1]):
            self.violation("asked for %r, agreed on %r" % (asked, version))
        if version not in LEGACY:
            return NOTHING_AGREED
        return version

    def modern(self, result, request):
        if member(result, "resultType") != "complete":
            self.violation("resultType is %r" % (member(result, "resultType"),))
        self.typed(MODERN, "Implementation", member(result, "_meta", META_SERVER))
        if request.method == "subscriptions/listen":
            named = member(result, "_meta", META_SUBSCRIPTION)
            if not json_equal(named, request.message["id"]):
                self.violation("names the subscription %r" % (named,))

    def tools(self, version, result):
        for tool in member(result, "tools") or []:
            for name in ("inputSchema", "outputSchema"):
                schema = member(tool, name)
                if schema is None:
                    continue
                try:
                    jsonschema.Draft202012Validator.check_schema(schema)
                except jsonschema.SchemaError as error:
                    self.violation("%s of %s: %s" % (name, member(tool, "name"), error.message))
                if schema.get("type") != "object":
                    self.violation("%s of %s is no object" % (name, member(tool, "name")))

    def is_for_gemini(self):
        before = [r for r in self.recording.requests if r.method == "initialize" and r.place < self.place]
        return bool(before) and str(member(before[-1].message, "params", "clientInfo", "name")).startswith("gemini-cli-mcp-client")

    def called(self, version, tool, result):
        if tool not in self.listed:
            if self.listed:
                self.violation("a result of a tool that is not listed: %r" % (tool,))
            return
        schema, failed = self.listed[tool], member(result, "isError")
        if schema is None:
            empty_for_gemini = result.get("structuredContent") == {} and self.is_for_gemini()  # see GEMINI_CLI in main.rs
            if "structuredContent" in result and not empty_for_gemini:
                self.violation("structuredContent from %s, which lists no outputSchema" % tool)
            return
        if "structuredContent" not in result:
            if not failed and version >= "2025-06-18":
                self.violation("no structuredContent from %s" % tool)
            return
        structured = result["structuredContent"]
        self.counts["structured"] += 1
        if not failed:
            for problem in first_problems(jsonschema.Draft202012Validator(schema), structured):
                self.violation("outputSchema of %s: %s" % (tool, problem))
        try:
            same = json_equal(json.loads(result["content"][0]["text"]), structured)
        except (ValueError, KeyError, IndexError, TypeError):
            same = False
        if not same:
            self.violation("the text of %s is not its structuredContent" % tool)


def files(paths):
    for path in paths:
        if os.path.isdir(path):
            for folder, _folders, names in sorted(os.walk(path)):
                for name in sorted(names):
                    yield os.path.join(folder, name)
        else:
            yield path


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    schemas = Schemas(os.path.join(HERE, "mcp-schema"))
    recordings = [Recording(path) for path in files(sys.argv[1:])]
    anywhere = {}
    for recording in recordings:
        anywhere.update(recording.output_schemas())
    counts, violations = collections.Counter(), []
    for recording in recordings:
        Check(schemas, recording, recording.output_schemas() or anywhere, counts)
        violations += recording.violations
    for path, place, text, line in violations[:SHOWN_MAX]:
        print("%s:%d: %s" % (os.path.basename(path), place, text))
        if line is not None:
            print("    %s" % ascii(line if len(line) < 400 else line[:400] + "…"))
    if len(violations) > SHOWN_MAX:
        print("… and %d more" % (len(violations) - SHOWN_MAX))
    structured = counts.pop("structured", 0)
    checked = sum(counts.values())
    by_version = ", ".join("%s: %d" % item for item in sorted(counts.items()))
    print("%d messages checked in %d recordings (%s), %d with structured content" % (
        checked, len(recordings), by_version, structured))
    print("%d violations" % len(violations))
    sys.exit(1 if violations or not checked else 0)


main()
