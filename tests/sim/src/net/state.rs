//! What the network consists of, and what happens on it by itself.
//!
//! Invariant: an end that has ended hears and says nothing more; a connection is forgotten when both
//! of its ends have ended and nothing of it is under way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use corebay_core::{net::Ready, rng::Rng, units::Time};

use super::hub::NetProfile;
use crate::trace::{Trace, event};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Connecting,
    Open,
    /// Its process has let go of it.
    Closed,
    /// Its machine lost power.
    Vanished,
}

pub(super) struct End {
    pub address: SocketAddr,
    pub standing: Standing,
    pub error: Option<ErrorKind>,
    pub watch: Option<(usize, u64)>,
    /// A receive gave `WouldBlock` since the last edge.
    pub wants_read: bool,
    /// A send gave `WouldBlock` since the last edge.
    pub wants_write: bool,
}

pub(super) enum Segment {
    Bytes(Vec<u8>),
    Finish,
    Reset,
}

pub(super) struct Pipe {
    pub flying: VecDeque<Segment>,
    pub last_arrival: Time,
    pub arrived: VecDeque<u8>,
    /// Bytes that the sender has sent and the receiver has not taken.
    pub held: usize,
    pub finished: bool,
    pub ended: bool,
}

pub(super) struct Connection {
    pub ends: [End; 2],
    pub pipes: [Pipe; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A connection request reaches the listener's machine.
    Request(u64),
    /// The answer reaches who connects.
    Answer(u64),
    /// The next segment of a pipe arrives.
    Arrival(u64, usize),
}

pub(super) struct Listener {
    pub address: SocketAddr,
    pub watch: Option<(usize, u64)>,
    pub backlog: VecDeque<u64>,
}

pub(super) struct State {
    pub trace: Trace,
    pub rng: Rng,
    pub profile: NetProfile,
    pub now: Time,
    pub events: BTreeMap<(Time, u64), Event>,
    pub sequence: u64,
    pub connections: BTreeMap<u64, Connection>,
    pub next_connection: u64,
    pub listeners: Vec<Listener>,
    pub cores: Vec<Option<VecDeque<Ready>>>,
    pub parted: BTreeSet<IpAddr>,
    pub waiting: Vec<Event>,
    pub down: BTreeSet<IpAddr>,
    /// When the last connection of a machine with another ended there.
    pub last_end: BTreeMap<(IpAddr, IpAddr), Time>,
    /// When each connection that is open was asked for.
    pub since: BTreeMap<u64, Time>,
}

/// How many of `bytes` one call moves.
pub(super) fn cut(rng: &mut Rng, profile: &NetProfile, bytes: usize) -> usize {
    if bytes > 1 && rng.once_in(profile.short_one_in) {
        1 + usize::try_from(rng.below(bytes as u64)).unwrap_or(0)
    } else {
        bytes
    }
}

impl State {
    pub fn new(profile: NetProfile, rng: Rng, trace: Trace) -> Self {
        Self {
            trace,
            rng,
            profile,
            now: Time(0),
            events: BTreeMap::new(),
            sequence: 0,
            connections: BTreeMap::new(),
            next_connection: 1,
            listeners: Vec::new(),
            cores: Vec::new(),
            parted: BTreeSet::new(),
            waiting: Vec::new(),
            down: BTreeSet::new(),
            last_end: BTreeMap::new(),
            since: BTreeMap::new(),
        }
    }

    pub fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// When what is sent now arrives.
    pub fn arrival_time(&mut self) -> Time {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let spread = self.rng.below(nanos(self.profile.latency_spread) + 1);
        let mut delay = self.profile.latency_min + Duration::from_nanos(spread);
        if self.rng.once_in(self.profile.stall_one_in) {
            delay += self.profile.stall;
        }
        self.now.plus(delay)
    }

    /// Sends a segment from end `side`.
    pub fn push(&mut self, id: u64, side: usize, segment: Segment) {
        let at = self.arrival_time();
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let pipe = &mut connection.pipes[side];
        if let Segment::Bytes(bytes) = &segment {
            pipe.held += bytes.len();
        }
        let at = at.max(Time(pipe.last_arrival.0 + 1));
        pipe.last_arrival = at;
        pipe.flying.push_back(segment);
        self.schedule(at, Event::Arrival(id, side));
    }

    pub fn happen(&mut self, event: Event) {
        let (Event::Request(id) | Event::Answer(id) | Event::Arrival(id, _)) = event;
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let parted = |side: usize| self.parted.contains(&connection.ends[side].address.ip());
        if parted(0) || parted(1) {
            self.waiting.push(event);
            return;
        }
        match event {
            Event::Request(_) => self.request(id),
            Event::Answer(_) => self.answer(id),
            Event::Arrival(_, side) => self.arrival(id, side),
        }
        self.forget_ended(id);
    }

    fn request(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let [client, server] = &mut connection.ends;
        server.standing = Standing::Closed;
        if client.standing != Standing::Connecting || self.down.contains(&server.address.ip()) {
            return;
        }
        let mut listeners = self.listeners.iter_mut();
        let Some(listener) = listeners.find(|known| known.address == server.address) else {
            self.push(id, 1, Segment::Reset);
            return;
        };
        server.standing = Standing::Open;
        listener.backlog.push_back(id);
        if let Some((core, key)) = listener.watch {
            let ready = Ready {
                key,
                readable: true,
                writable: false,
            };
            self.edge(core, ready);
        }
        let at = self.arrival_time();
        self.schedule(at, Event::Answer(id));
    }

    fn answer(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.ends[0].standing {
            Standing::Connecting => {
                connection.ends[0].standing = Standing::Open;
                self.note(id, "is connected");
                self.became_writable(id, 0);
            }
            Standing::Closed => self.push(id, 0, Segment::Reset),
            Standing::Open | Standing::Vanished => {}
        }
    }

    fn arrival(&mut self, id: u64, from: usize) {
        let to = 1 - from;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(segment) = connection.pipes[from].flying.pop_front() else {
            return;
        };
        let down = self.down.contains(&connection.ends[to].address.ip());
        match (connection.ends[to].standing, segment) {
            (Standing::Vanished, _) if down => {}
            (Standing::Vanished | Standing::Closed, Segment::Bytes(_)) => {
                self.push(id, to, Segment::Reset);
            }
            (Standing::Vanished | Standing::Closed, _) => {}
            (_, Segment::Reset) => {
                self.note(id, "is reset");
                let kind = match connection_was_open(&self.connections[&id], to) {
                    true => ErrorKind::ConnectionReset,
                    false => ErrorKind::ConnectionRefused,
                };
                self.fail(id, to, kind);
            }
            (_, Segment::Bytes(bytes)) => {
                let side = to as u64;
                let mark = [event::ARRIVAL, id << 1 | side, bytes.len() as u64];
                connection.pipes[from].arrived.extend(bytes);
                self.trace.mark(mark);
                self.became_readable(id, to);
            }
            (_, Segment::Finish) => {
                connection.pipes[from].ended = true;
                self.note(id, "has ended from one side");
                self.became_readable(id, to);
            }
        }
    }

    /// An end finds its connection broken.
    pub fn fail(&mut self, id: u64, side: usize, kind: ErrorKind) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        if !matches!(end.standing, Standing::Open | Standing::Connecting) {
            return;
        }
        end.error = Some(kind);
        end.wants_read = true;
        end.wants_write = true;
        let pipe = &mut connection.pipes[1 - side];
        pipe.held -= pipe.arrived.len();
        pipe.arrived.clear();
        let watch = connection.ends[side].watch;
        if let Some((core, key)) = watch {
            let ready = Ready {
                key,
                readable: true,
                writable: true,
            };
            self.edge(core, ready);
        }
    }

    pub fn finish(&mut self, id: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let open = connection.ends[side].standing == Standing::Open;
        if open && !std::mem::replace(&mut connection.pipes[side].finished, true) {
            self.push(id, side, Segment::Finish);
        }
    }

    /// The process lets go of an end: what it had not read makes that a reset.
    pub fn close(&mut self, id: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &connection.ends[side];
        let healthy = end.standing == Standing::Open && end.error.is_none();
        let unread = !connection.pipes[1 - side].arrived.is_empty();
        if matches!(end.standing, Standing::Closed | Standing::Vanished) {
            return;
        }
        if healthy && unread {
            self.push(id, side, Segment::Reset);
        } else if healthy {
            self.finish(id, side);
        }
        self.change(id, side, Standing::Closed);
    }

    /// An end ends.
    pub fn change(&mut self, id: u64, side: usize, standing: Standing) {
        self.unwatch(id, side);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.ends[side].standing = standing;
        if side == 1 {
            let [client, server] = &connection.ends;
            let machines = (client.address.ip(), server.address.ip());
            self.last_end.insert(machines, self.now);
        }
        self.note(
            id,
            if side == 0 {
                "is closed by its host"
            } else {
                "is closed by the target"
            },
        );
        self.forget_ended(id);
    }

    pub fn unwatch(&mut self, id: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if let Some((core, key)) = connection.ends[side].watch.take()
            && let Some(edges) = &mut self.cores[core]
        {
            edges.retain(|ready| ready.key != key);
        }
    }

    fn forget_ended(&mut self, id: u64) {
        let ended = self.connections.get(&id).is_some_and(|connection| {
            let [a, b] = &connection.ends;
            let over = |end: &End| matches!(end.standing, Standing::Closed | Standing::Vanished);
            over(a) && over(b) && connection.pipes.iter().all(|pipe| pipe.flying.is_empty())
        });
        if ended {
            self.connections.remove(&id);
            self.since.remove(&id);
        }
    }

    fn became_readable(&mut self, id: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        let Some((core, key)) = end.watch else { return };
        if std::mem::take(&mut end.wants_read) {
            let ready = Ready {
                key,
                readable: true,
                writable: false,
            };
            self.edge(core, ready);
        }
    }

    pub fn became_writable(&mut self, id: u64, side: usize) {
        let room = self.profile.room;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let free = connection.pipes[side].held < room;
        let end = &mut connection.ends[side];
        let Some((core, key)) = end.watch else { return };
        if end.standing == Standing::Open && free && std::mem::take(&mut end.wants_write) {
            let ready = Ready {
                key,
                readable: false,
                writable: true,
            };
            self.edge(core, ready);
        }
    }

    pub fn edge(&mut self, core: usize, ready: Ready) {
        let Some(edges) = &mut self.cores[core] else {
            return;
        };
        if let Some(known) = edges.iter_mut().find(|known| known.key == ready.key) {
            known.readable |= ready.readable;
            known.writable |= ready.writable;
        } else {
            edges.push_back(ready);
        }
    }

    /// The ends that processes of a machine hold.
    pub fn ends_at(&self, ip: IpAddr) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        for (id, connection) in &self.connections {
            for (side, end) in connection.ends.iter().enumerate() {
                // An accepting end that is still connecting is in nobody's hands.
                let held = end.standing == Standing::Open
                    || end.standing == Standing::Connecting && side == 0;
                if end.address.ip() == ip && held {
                    found.push((*id, side));
                }
            }
        }
        found
    }

    pub fn remove_listeners(&mut self, ip: IpAddr) {
        self.listeners.retain(|known| known.address.ip() != ip);
    }

    pub fn note(&self, id: u64, what: &str) {
        let words = [event::NETWORK, id, what.len() as u64];
        self.trace.note(words, || format!("connection {id} {what}"));
    }
}

fn connection_was_open(connection: &Connection, side: usize) -> bool {
    connection.ends[side].standing == Standing::Open
}

impl Connection {
    pub fn new(ends: [SocketAddr; 2], now: Time) -> Self {
        let end = |address| End {
            address,
            standing: Standing::Connecting,
            error: None,
            watch: None,
            wants_read: true,
            wants_write: true,
        };
        let pipe = || Pipe {
            flying: VecDeque::new(),
            last_arrival: now,
            arrived: VecDeque::new(),
            held: 0,
            finished: false,
            ended: false,
        };
        Self {
            ends: ends.map(end),
            pipes: [pipe(), pipe()],
        }
    }
}
