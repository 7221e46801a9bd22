"""A taken-over front end that throws lingering sockets at the broker.

Dropping the last copy of a TCP socket with SO_LINGER set and unsent data blocks the process that drops it, here for
60 s each time. Linux before 6.16 cannot refuse such a descriptor to its sender.
"""
import array
import os
import signal
import socket
import struct
import subprocess
import time

SOCKET = '/run/broker.sock'
PEER = 70000
HELLO = struct.pack('<BI', 0, 4)  # the boundary protocol's version
WELCOME = 64
GUARD = 30  # seconds


def Stuck(seconds):
    """A connection whose other end never reads, its send buffer full; closing it lingers for `seconds`."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, seconds))
    near.setblocking(False)
    try:
        while True:
            near.send(b'x' * 65536)
    except BlockingIOError:
        return near, far


def Throw(channel, message, sockets):
    """Sends the sockets with the message and closes ours: the receiver must not run before that."""
    descriptors = array.array('i', [near.fileno() for near in sockets])
    channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    for near in sockets:
        near.close()


def Meet():
    """Our end of a fresh channel to the broker, as the front end's uid, tried until the broker listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        os.seteuid(PEER)
        while visitor.connect_ex(SOCKET) != 0:
            os.sched_yield()
        os.seteuid(0)
        _, descriptors, _, _ = socket.recv_fds(visitor, 1, 1)
    channel = socket.socket(fileno=descriptors[0])
    channel.settimeout(GUARD)
    return channel


def HeldFor(seconds):
    """How long the drop holds up a receiver that does nothing about it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near, far = Stuck(seconds)
    Throw(ours, b'x', [near])
    began = time.monotonic()
    theirs.recv(1)
    far.close()
    return time.monotonic() - began


def Attack(process, number):
    """Throws `number` sockets in one message; what the broker then did, and the far ends of the sockets."""
    channel = Meet()
    pairs = [Stuck(60) for _ in range(number)]
    os.kill(process.pid, signal.SIGSTOP)
    Throw(channel, HELLO, [near for near, _ in pairs])
    os.kill(process.pid, signal.SIGCONT)
    events = ['dropped' if channel.recv(1) == b'' else 'answered']
    channel = Meet()
    channel.send(HELLO)
    events.append('welcome' if channel.recv(65536)[:1] == bytes([WELCOME]) else 'silence')
    channel.close()
    return events, [far for _, far in pairs]


def Unread(far):
    """Nothing has been read, so the sender's buffer is still full and still worth waiting for."""
    return len(far.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > 0


def Check(broker, hang, require, say):
    held = HeldFor(2)
    require(held > 1, f'a plain receiver was held up for {held:.1f} s only: there is nothing to show here')
    process = subprocess.Popen([broker, '--socket', SOCKET, '--peer', str(PEER)], stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        for number in (1, 1, 20):
            events, far_ends = Attack(process, number)
            require(events == ['dropped', 'welcome'], f'{number} sockets: {events}')
            require(all(map(Unread, far_ends)), 'a socket did not linger')
    except TimeoutError:
        require(False, f'no answer in {GUARD} s: the broker waits for a socket that lingers for 60 s')
    finally:
        process.terminate()  # its guardian clears up behind it
        _, log = process.communicate(timeout=hang)
    require(log.count('with descriptors') == 3, f'3 connections were to be dropped: {log}')
    say(f'a plain receiver is held up for {held:.1f} s by 2 s of linger; 3 connections with 22 sockets of 60 s '
        'dropped, and the next one welcomed')
