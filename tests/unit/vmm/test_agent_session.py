"""The agent session as a dialogue with a fake agent, then with hostile ones."""

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.errors import CrumbleError, GuestError, HostError, UsageError
from crumble_common.messages.vm import ProcessStart
from crumble_vmm.agent.channels import MAX_INPUT
from crumble_vmm.agent.events import (
    AgentLog,
    AgentReady,
    Exited,
    FileRead,
    FileWritten,
    InputTaken,
    Output,
    Refused,
    Started,
)
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, Stage, ToGuest, ToHost
from framework.fake_agent import FakeAgent, parse_spawn

PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"
GROUP = b"extra:x:50:web\n"


@pytest.fixture
def agent() -> FakeAgent:
    made = FakeAgent(AgentSession("box"))
    made.files = {b"/etc/passwd": bytearray(PASSWD), b"/etc/group": bytearray(GROUP)}
    return made


def spawn(agent: FakeAgent, request: ProcessStart, token: object = "t") -> Frame:
    agent.session.start(request, token)
    assert agent.run() == []
    return agent.expect(ToGuest.SPAWN)


def run(agent: FakeAgent, **fields: Any) -> int:
    """A running process; its channel."""
    frame = spawn(agent, ProcessStart(["sh"], **fields))
    assert agent.say(ToHost.STARTED, frame.channel, 42) == [Started("t", frame.channel, 42)]
    return frame.channel


def test_ready_and_setup(agent: FakeAgent) -> None:
    agent.session.setup(123, b"seed")
    agent.run()
    assert agent.expect(ToGuest.SETUP).payload == (
        struct.pack("<QI", 123, 3) + b"box" + struct.pack("<I", 4) + b"seed" + bytes(4)
    )
    payload = struct.pack("<QI", 5_000_000, 4) + b"init"
    assert agent.say(ToHost.READY, argument=1, payload=payload) == [
        AgentReady([("init", 5_000_000)])
    ]
    assert agent.session.ready
    assert agent.say(ToHost.LOG, payload=b"hello \xff") == [AgentLog("hello \ufffd")]


def test_a_command_from_start_to_exit(agent: FakeAgent) -> None:
    frame = spawn(agent, ProcessStart(["uname", "-a"], env={"A": "b=c"}, cwd="/tmp", credit=100))
    assert parse_spawn(frame.payload) == {
        "flags": 0,
        "rows": 24,
        "cols": 80,
        "uid": 0,
        "gid": 0,
        "groups": (),
        "credit": 100,
        "cwd": b"/tmp",
        "argv": [b"uname", b"-a"],
        "env": [
            b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            b"HOME=/root",
            b"HOSTNAME=box",
            b"A=b=c",
        ],
    }
    channel = frame.channel
    assert agent.say(ToHost.STARTED, channel, 7) == [Started("t", channel, 7)]
    assert agent.say(ToHost.OUTPUT, channel, flags=1, payload=b"Linux") == [
        Output(channel, 1, b"Linux")
    ]
    assert agent.say(ToHost.OUTPUT, channel, flags=2, payload=b"oops") == [
        Output(channel, 2, b"oops")
    ]
    assert agent.say(ToHost.EXITED, channel, 3) == [Exited(channel, 3, 0)]


def test_user_home_groups_and_terminal(agent: FakeAgent) -> None:
    frame = spawn(agent, ProcessStart(["sh"], user="web", tty=True, rows=50, cols=132))
    found = parse_spawn(frame.payload)
    assert (found["uid"], found["gid"], found["groups"]) == (33, 34, (50,))
    assert (found["flags"], found["rows"], found["cols"]) == (protocol.SPAWN_TTY, 50, 132)
    assert {b"HOME=/srv", b"TERM=xterm"} <= set(found["env"])
    assert found["cwd"] == b"/"


def test_environment_given_wins(agent: FakeAgent) -> None:
    frame = spawn(agent, ProcessStart(["sh"], env={"PATH": "/x", "HOME": "/y"}))
    env = parse_spawn(frame.payload)["env"]
    assert env[:2] == [b"PATH=/x", b"HOME=/y"]


def test_an_unknown_user_is_refused_and_leaves_nothing_open(agent: FakeAgent) -> None:
    agent.session.start(ProcessStart(["sh"], user="nobody"), "t")
    (event,) = agent.run()
    assert isinstance(event, Refused)
    assert (event.token, event.error.code) == ("t", "exec.user")
    assert agent.session.close(GuestError("gone")) == []


def test_an_image_without_users(agent: FakeAgent) -> None:
    agent.files.clear()
    assert parse_spawn(spawn(agent, ProcessStart(["sh"])).payload)["uid"] == 0


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        (Stage.EXEC, errno.ENOENT, "exec.not_found"),
        (Stage.EXEC, errno.EACCES, "exec.not_executable"),
        (Stage.EXEC, errno.ENOEXEC, "exec.not_executable"),
        (Stage.CHDIR, errno.ENOENT, "exec.failed"),
        (Stage.SETUP, errno.EAGAIN, "exec.failed"),
        (99, 9999, "exec.failed"),
    ],
)
def test_a_command_that_cannot_start(agent: FakeAgent, stage: int, number: int, code: str) -> None:
    frame = spawn(agent, ProcessStart(["/bin/x"], cwd="/nowhere"))
    (event,) = agent.say(ToHost.FAILED, frame.channel, number, stage)
    assert isinstance(event, Refused)
    assert event.error.code == code
    assert "/bin/x" in event.error.message or "/nowhere" in event.error.message


@pytest.mark.parametrize(
    ("argv", "systemd", "init"),
    [
        ("/sbin/init", "auto", True),
        ("/usr/lib/systemd/systemd", "auto", True),
        ("/bin/init", "auto", False),
        ("/sbin/init", "never", False),
        ("/etc/s6-init", "always", True),
    ],
)
def test_what_becomes_pid_1(agent: FakeAgent, argv: str, systemd: Any, init: bool) -> None:
    frame = spawn(agent, ProcessStart([argv], systemd=systemd))
    assert parse_spawn(frame.payload)["flags"] == (protocol.SPAWN_INIT if init else 0)
    agent.say(ToHost.STARTED, frame.channel, 1)
    assert agent.session.power_off() == ([Exited(frame.channel, 0, 0)] if init else [])


def test_pid_1_is_taken(agent: FakeAgent) -> None:
    frame = spawn(agent, ProcessStart(["/sbin/init"], systemd="auto"))
    assert agent.session.power_off() == [], "it had not started"
    (event,) = agent.say(ToHost.FAILED, frame.channel, errno.EBUSY, Stage.SETUP)
    assert isinstance(event, Refused)
    assert (event.error.code, event.token) == ("exec.init", "t")


def test_death_by_signal(agent: FakeAgent) -> None:
    channel = run(agent)
    agent.session.signal(channel, 9)
    agent.run()
    assert agent.expect(ToGuest.SIGNAL).argument == 9
    assert agent.say(ToHost.EXITED, channel, 9 << 8) == [Exited(channel, 137, 9)]
    with pytest.raises(UsageError, match="no process"):
        agent.session.signal(channel, 9)


def test_signals_and_processes_that_do_not_exist(agent: FakeAgent) -> None:
    channel = run(agent)
    for number in (0, 65, -1):
        with pytest.raises(UsageError):
            agent.session.signal(channel, number)
    for process in (0, channel + 1, -5):
        with pytest.raises(UsageError):
            agent.session.signal(process, 15)
        agent.session.input(process, b"x", True)
        agent.session.credit(process, 1, 5)
        agent.session.resize(process, 1, 1)
    assert agent.session.take() == b""


def test_input_goes_within_the_window(agent: FakeAgent) -> None:
    channel = run(agent, stdin=True)
    agent.session.input(channel, b"a" * 70_000, False)
    agent.session.input(channel, b"b", True)
    agent.run()
    first = agent.expect(ToGuest.STDIN)
    assert (len(first.payload), first.argument) == (65536, 0)
    assert agent.frames == []
    credit = agent.say(ToHost.CREDIT, channel, 4000)
    assert credit == [InputTaken(channel, 4000)]
    assert agent.expect(ToGuest.STDIN).payload == b"a" * 4000
    agent.say(ToHost.CREDIT, channel, 60_000)
    last = agent.expect(ToGuest.STDIN)
    assert (last.payload, last.argument) == (b"a" * 464 + b"b", 1)
    agent.session.input(channel, b"late", False)
    assert agent.session.take() == b""


def test_end_of_input_alone(agent: FakeAgent) -> None:
    channel = run(agent, stdin=True)
    agent.session.input(channel, b"", True)
    agent.session.input(channel, b"", True)
    agent.run()
    frame = agent.expect(ToGuest.STDIN)
    assert (frame.payload, frame.argument) == (b"", 1)
    assert agent.frames == []


def test_a_process_without_stdin_gets_none(agent: FakeAgent) -> None:
    channel = run(agent)
    agent.session.input(channel, b"x", True)
    assert agent.session.take() == b""


def test_input_beyond_what_is_kept_is_refused(agent: FakeAgent) -> None:
    channel = run(agent, stdin=True)
    with pytest.raises(UsageError, match="does not take its input"):
        for _ in range(100):
            agent.session.input(channel, bytes(MAX_INPUT // 8), False)


def test_credit_and_terminal_size(agent: FakeAgent) -> None:
    channel = run(agent, tty=True, credit=10)
    agent.say(ToHost.OUTPUT, channel, flags=1, payload=b"0123456789")
    agent.session.credit(channel, 1, 5)
    agent.session.resize(channel, 30, 100)
    agent.run()
    assert agent.expect(ToGuest.CREDIT).argument == 1 << 28 | 5
    assert agent.expect(ToGuest.RESIZE).argument == 30 << 16 | 100
    assert agent.say(ToHost.OUTPUT, channel, flags=1, payload=b"01234")
    agent.session.credit(channel, 2, 5)
    agent.session.credit(channel, 1, -5)
    assert agent.session.take() == b""


def test_files_are_read_and_written_in_pieces(agent: FakeAgent) -> None:
    data = bytes(range(256)) * 800
    agent.session.write_file("/tmp/é", data, 0, 0o640, "w")
    assert agent.run() == [FileWritten("w")]
    assert agent.files["/tmp/é".encode()] == data
    agent.session.read_file("/tmp/é", 0, 1 << 20, "r")
    assert agent.run() == [FileRead("r", data, True)]
    agent.session.read_file("/tmp/é", 10, 100_000, "r")
    assert agent.run() == [FileRead("r", data[10:100_010], False)]
    agent.session.write_file("/tmp/é", b"", 0, 0o640, "w")
    assert agent.run() == [FileWritten("w")]
    agent.session.read_file("/tmp/é", 5, 10, "r")
    assert agent.run() == [FileRead("r", b"", True)]


def test_files_that_cannot_be_read(agent: FakeAgent) -> None:
    agent.session.read_file("/none", 0, 10, "r")
    (event,) = agent.run()
    assert isinstance(event, Refused)
    assert event.error.code == "file.ENOENT"
    assert "/none" in event.error.message
    for bad in ("", "/a\0b", "/" + "x" * 5000):
        with pytest.raises(UsageError):
            agent.session.read_file(bad, 0, 10, "r")
        with pytest.raises(UsageError):
            agent.session.write_file(bad, b"x", 0, 0o644, "w")
    for offset, size in ((-1, 10), (0, -1), (0, 2 << 20)):
        with pytest.raises(UsageError):
            agent.session.read_file("/x", offset, size, "r")
    assert agent.session.close(GuestError("gone")) == []


def test_a_full_disk_is_the_hosts_fault(agent: FakeAgent) -> None:
    agent.session.write_file("/x", b"data", 0, 0o644, "w")
    (event,) = agent.session.receive(Frame(ToHost.FILE_DONE, 1, errno.ENOSPC).encode())
    assert isinstance(event, Refused)
    assert isinstance(event.error, HostError)


def test_what_waits_is_refused_when_the_agent_goes(agent: FakeAgent) -> None:
    run(agent)
    agent.session.start(ProcessStart(["sh"]), "launching")
    agent.session.read_file("/x", 0, 1, "reading")
    agent.session.write_file("/x", b"", 0, 0, "writing")
    events = agent.session.close(GuestError("gone"))
    assert [event.token for event in events if isinstance(event, Refused)] == [
        "launching",
        "reading",
        "writing",
    ]


def test_no_command(agent: FakeAgent) -> None:
    for argv in ([], [""]):
        with pytest.raises(UsageError, match="command"):
            agent.session.start(ProcessStart(argv), "t")
    agent.session.start(ProcessStart(["a\0b"]), "t")
    (event,) = agent.run()
    assert isinstance(event, Refused)


def test_many_at_once(agent: FakeAgent) -> None:
    channels = [run(agent) for _ in range(20)]
    assert len(set(channels)) == 20
    for channel in reversed(channels):
        assert agent.say(ToHost.EXITED, channel) == [Exited(channel, 0, 0)]


HOSTILE: dict[str, Callable[[FakeAgent, int], object]] = {
    "unknown channel": lambda a, c: a.say(ToHost.OUTPUT, c + 99, flags=1),
    "output beyond credit": lambda a, c: a.say(ToHost.OUTPUT, c, flags=1, payload=b"x" * 11),
    "third stream": lambda a, c: a.say(ToHost.OUTPUT, c, flags=3, payload=b"x"),
    "stdin as output": lambda a, c: a.say(ToHost.OUTPUT, c, flags=0, payload=b"x"),
    "credit never used": lambda a, c: a.say(ToHost.CREDIT, c, 1),
    "credit for stdout": lambda a, c: a.say(ToHost.CREDIT, c, 1 << 28),
    "started twice": lambda a, c: a.say(ToHost.STARTED, c, 1),
    "failed after start": lambda a, c: a.say(ToHost.FAILED, c, 1),
    "file data for a process": lambda a, c: a.say(ToHost.FILE_DATA, c, 1),
    "exit twice": lambda a, c: (a.say(ToHost.EXITED, c), a.say(ToHost.EXITED, c)),
    "host frame": lambda a, c: a.say(ToGuest.SPAWN, c),
    "host frame for nobody": lambda a, c: a.say(ToGuest.SPAWN, 0),
    "other version": lambda a, c: a.say(ToHost.READY, 0, 2),
    "ready twice": lambda a, c: (a.say(ToHost.READY, 0, 1), a.say(ToHost.READY, 0, 1)),
    "bad ready": lambda a, c: a.say(ToHost.READY, 0, 1, payload=b"xx"),
    "endless frame": lambda a, c: list(
        a.session.receive(struct.pack("<IHHII", 65537, 67, 1, c, 0))
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_agent_ends_its_session(agent: FakeAgent, case: str) -> None:
    channel = run(agent, credit=10)
    with pytest.raises(GuestError):
        HOSTILE[case](agent, channel)


def test_more_file_data_than_asked(agent: FakeAgent) -> None:
    agent.session.read_file("/x", 0, 4, "r")
    with pytest.raises(GuestError):
        list(agent.session.receive(Frame(ToHost.FILE_DATA, 1, payload=b"12345").encode()))


def test_an_endless_passwd_is_cut(agent: FakeAgent) -> None:
    agent.session.start(ProcessStart(["sh"]), "t")
    frame = Frame(ToHost.FILE_DATA, 1, payload=b"x" * 65536).encode()
    sent = 0
    while agent.session.take():
        list(agent.session.receive(frame))
        sent += 1
    assert sent == 16


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda kind, flags, channel, argument, payload: Frame(
                    kind, channel, argument, flags, payload
                ).encode(),
                st.sampled_from([65, 66, 67, 68, 69, 70, 71, 72, 73, 74]),
                st.integers(0, 3),
                st.integers(0, 4),
                st.integers(0, 70000),
                st.binary(max_size=30),
            ),
        ),
        max_size=12,
    )
)
def test_any_bytes_from_the_port(pieces: list[bytes]) -> None:
    """Whatever the port says: events, or GuestError; then every request can still be refused."""
    session = AgentSession("box")
    session.start(ProcessStart(["sh"], stdin=True), "a")
    session.read_file("/x", 0, 100, "b")
    session.write_file("/y", b"data", 0, 0o644, "c")
    answered = []
    try:
        for piece in pieces:
            answered.extend(  # keeps what came before an error
                event.token
                for event in session.receive(piece)
                if isinstance(event, Refused | Started | FileRead | FileWritten)
            )
    except GuestError:
        pass
    rest = session.close(CrumbleError("gone"))
    tokens = answered + [event.token for event in rest if isinstance(event, Refused)]
    assert sorted(tokens) == ["a", "b", "c"]
