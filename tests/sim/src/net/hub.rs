//! All connections of the world, and what the network does to them.
//!
//! A connection has two ends (0 connected, 1 accepted) and two pipes; pipe `i` carries what end `i`
//! sends. What is under way is a segment with an arrival event; segments of a pipe keep their order.
//!
//! Invariants:
//! - While machines are parted, events between them wait; nothing is lost by it.
//! - A machine whose power fails says nothing: its peers learn it from their own time-outs, or by a
//!   reset once it is up again and they send.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use corebay_core::{
    net::{READY_MAX, Ready},
    rng::Rng,
    units::Time,
};

use super::state::{Connection, Event, Listener, Segment, Standing, State, cut};
use crate::trace::{Trace, lock};

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct NetProfile {
    /// A segment takes at least this long.
    pub latency_min: Duration,
    /// And up to so much longer.
    pub latency_spread: Duration,
    /// The largest segment.
    pub segment_max: usize,
    /// Bytes that a pipe holds before its sender has to wait.
    pub room: usize,
    /// One receive or send in so many moves less than it could; 0: none.
    pub short_one_in: u64,
    /// One segment in so many is late by [`stall`](Self::stall); 0: none.
    pub stall_one_in: u64,
    /// How late those are.
    pub stall: Duration,
}

/// The network; clones name the same one.
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// A network without machines.
    #[must_use]
    pub fn new(profile: NetProfile, seed: u64, trace: &Trace) -> Self {
        let state = State::new(profile, Rng::from_seed(seed), trace.clone());
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Lets arrive what is due.
    pub fn advance(&self, now: Time) {
        let mut state = self.state();
        state.now = now;
        while let Some(entry) = state.events.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let event = entry.remove();
            state.happen(event);
        }
    }

    /// When the next event is due.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        self.state().events.keys().next().map(|(time, _)| *time)
    }

    /// True where no core has edges to take.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let state = self.state();
        for edges in &state.cores {
            if edges.as_ref().is_some_and(|edges| !edges.is_empty()) {
                return false;
            }
        }
        true
    }

    /// The network behaves like this from now on.
    pub fn set_profile(&self, profile: NetProfile) {
        self.state().profile = profile;
    }

    /// Parts a machine from all others.
    pub fn part(&self, ip: IpAddr) {
        self.state().parted.insert(ip);
    }

    /// No machine is parted any more: what waited is on its way.
    pub fn heal(&self) {
        let mut state = self.state();
        state.parted.clear();
        for event in std::mem::take(&mut state.waiting) {
            let at = state.arrival_time();
            state.schedule(at, event);
        }
    }

    /// The connections that exist, for a fault to choose from.
    #[must_use]
    pub fn connections(&self) -> Vec<u64> {
        self.state().connections.keys().copied().collect()
    }

    /// Breaks a connection: both ends learn of it, or (with `half`) only the one that accepted.
    pub fn reset(&self, connection: u64, half: bool) {
        let mut state = self.state();
        if !half {
            state.fail(connection, 0, ErrorKind::ConnectionReset);
        }
        state.fail(connection, 1, ErrorKind::ConnectionReset);
    }

    /// One end sees an end of stream that its peer did not send.
    pub fn half_close(&self, connection: u64, side: usize) {
        self.state().finish(connection, side);
    }

    /// The processes of a machine end: its connections are closed as a kernel does it.
    pub fn end_process(&self, ip: IpAddr) {
        let mut state = self.state();
        state.remove_listeners(ip);
        for (connection, side) in state.ends_at(ip) {
            state.close(connection, side);
        }
    }

    /// A machine loses its power.
    pub fn cut_power(&self, ip: IpAddr) {
        let mut state = self.state();
        state.remove_listeners(ip);
        state.down.insert(ip);
        for (connection, side) in state.ends_at(ip) {
            state.change(connection, side, Standing::Vanished);
        }
    }

    /// A machine has power again. Who still waits for an answer from before hears that nobody knows
    /// him.
    pub fn restore_power(&self, ip: IpAddr) {
        let mut state = self.state();
        state.down.remove(&ip);
        let waiting: Vec<_> = state
            .connections
            .iter()
            .flat_map(|(id, connection)| [(*id, 0, connection), (*id, 1, connection)])
            .filter(|(_, side, connection)| {
                let end = &connection.ends[*side];
                end.address.ip() == ip
                    && end.standing == Standing::Vanished
                    && connection.pipes[1 - side].held > 0
            })
            .map(|(id, side, _)| (id, side))
            .collect();
        for (connection, side) in waiting {
            state.push(connection, side, Segment::Reset);
        }
    }

    /// Whether the current connections of a machine with another were all made after every former
    /// one had ended there: nothing that was sent before them can still arrive.
    #[must_use]
    pub fn is_fenced(&self, ip: IpAddr, peer: IpAddr) -> bool {
        let state = self.state();
        let mut first = Time::FAR;
        for (id, connection) in &state.connections {
            let [client, server] = &connection.ends;
            if client.address.ip() != ip || server.address.ip() != peer {
                continue;
            }
            let lives = matches!(client.standing, Standing::Open | Standing::Connecting)
                && client.error.is_none();
            if lives {
                first = first.min(state.since.get(id).copied().unwrap_or(Time(0)));
            } else if server.standing == Standing::Open {
                return false;
            }
        }
        let last_end = state.last_end.get(&(ip, peer)).copied().unwrap_or(Time(0));
        first != Time::FAR && first > last_end
    }

    pub(super) fn add_core(&self) -> usize {
        let mut state = self.state();
        state.cores.push(Some(VecDeque::new()));
        state.cores.len() - 1
    }

    pub(super) fn remove_core(&self, core: usize) {
        self.state().cores[core] = None;
    }

    pub(super) fn listen(&self, address: SocketAddr) -> io::Result<()> {
        let mut state = self.state();
        if state.listeners.iter().any(|known| known.address == address) {
            return Err(ErrorKind::AddrInUse.into());
        }
        state.listeners.push(Listener {
            address,
            watch: None,
            backlog: VecDeque::new(),
        });
        Ok(())
    }

    /// Connections that nobody has accepted are reset.
    pub(super) fn unlisten(&self, address: SocketAddr) {
        let mut state = self.state();
        let Some(index) = state.listeners.iter().position(|l| l.address == address) else {
            return;
        };
        for id in state.listeners.remove(index).backlog {
            state.push(id, 1, Segment::Reset);
            state.change(id, 1, Standing::Closed);
        }
    }

    pub(super) fn watch_listener(&self, address: SocketAddr, core: usize, key: u64) {
        let mut state = self.state();
        let mut listeners = state.listeners.iter_mut();
        if let Some(listener) = listeners.find(|known| known.address == address) {
            listener.watch = Some((core, key));
        }
    }

    pub(super) fn accept(&self, address: SocketAddr) -> io::Result<(u64, [SocketAddr; 2])> {
        let mut state = self.state();
        let mut listeners = state.listeners.iter_mut();
        let listener = listeners.find(|known| known.address == address);
        let listener = listener.ok_or(ErrorKind::InvalidInput)?;
        let id = listener.backlog.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let ends = &state.connections[&id].ends;
        Ok((id, [ends[0].address, ends[1].address]))
    }

    pub(super) fn connect(&self, from: IpAddr, to: SocketAddr) -> (u64, [SocketAddr; 2]) {
        let mut state = self.state();
        let id = state.next_connection;
        state.next_connection += 1;
        let port = 1024 + u16::try_from(id % 60_000).unwrap_or(0);
        let ends = [SocketAddr::new(from, port), to];
        let now = state.now;
        state.connections.insert(id, Connection::new(ends, now));
        state.since.insert(id, now);
        state.note(id, "asks for a connection");
        let at = state.arrival_time();
        state.schedule(at, Event::Request(id));
        (id, ends)
    }

    pub(super) fn watch(&self, connection: u64, side: usize, core: usize, key: u64) {
        let mut state = self.state();
        let room = state.profile.room;
        let Some(found) = state.connections.get_mut(&connection) else {
            return;
        };
        let incoming = &found.pipes[1 - side];
        let readable = !incoming.arrived.is_empty() || incoming.ended;
        let full = found.pipes[side].held >= room;
        let end = &mut found.ends[side];
        let failed = end.error.is_some();
        let writable = end.standing == Standing::Open && !full;
        end.watch = Some((core, key));
        end.wants_read = !(readable || failed);
        end.wants_write = !(writable || failed);
        let ready = Ready {
            key,
            readable: readable || failed,
            writable: writable || failed,
        };
        if ready.readable || ready.writable {
            state.edge(core, ready);
        }
    }

    pub(super) fn unwatch(&self, connection: u64, side: usize) {
        self.state().unwatch(connection, side);
    }

    pub(super) fn poll(&self, core: usize, ready: &mut Vec<Ready>) {
        let mut state = self.state();
        if let Some(edges) = &mut state.cores[core] {
            let count = edges.len().min(READY_MAX);
            ready.extend(edges.drain(..count));
        }
    }

    pub(super) fn receive(
        &self,
        connection: u64,
        side: usize,
        into: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let state = &mut *self.state();
        let profile = state.profile;
        let Some(found) = state.connections.get_mut(&connection) else {
            return Err(ErrorKind::ConnectionReset.into());
        };
        let pipe = &mut found.pipes[1 - side];
        let end = &mut found.ends[side];
        if let Some(error) = end.error {
            return Err(error.into());
        }
        if end.standing != Standing::Open && end.standing != Standing::Connecting {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if pipe.arrived.is_empty() {
            if pipe.ended {
                return Ok(0);
            }
            end.wants_read = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut left = cut(&mut state.rng, &profile, pipe.arrived.len());
        let pipe = &mut found.pipes[1 - side];
        let mut taken = 0;
        for slice in into {
            let count = left.min(slice.len());
            let (front, back) = pipe.arrived.as_slices();
            let first = count.min(front.len());
            slice[..first].copy_from_slice(&front[..first]);
            slice[first..count].copy_from_slice(&back[..count - first]);
            pipe.arrived.drain(..count);
            left -= count;
            taken += count;
        }
        pipe.held -= taken;
        state.became_writable(connection, 1 - side);
        Ok(taken)
    }

    pub(super) fn send(
        &self,
        connection: u64,
        side: usize,
        from: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let state = &mut *self.state();
        let profile = state.profile;
        let Some(found) = state.connections.get_mut(&connection) else {
            return Err(ErrorKind::ConnectionReset.into());
        };
        let end = &mut found.ends[side];
        if let Some(error) = end.error {
            return Err(error.into());
        }
        let held = found.pipes[side].held;
        match end.standing {
            Standing::Closed | Standing::Vanished => {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            Standing::Open if found.pipes[side].finished => {
                return Err(ErrorKind::BrokenPipe.into());
            }
            Standing::Open if held < profile.room => {}
            Standing::Open | Standing::Connecting => {
                end.wants_write = true;
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        let total: usize = from.iter().map(|slice| slice.len()).sum();
        let count = cut(&mut state.rng, &profile, total.min(profile.room - held));
        let mut segment = Vec::new();
        let mut left = count;
        for slice in from {
            let part = left.min(slice.len());
            segment.extend_from_slice(&slice[..part]);
            left -= part;
        }
        for part in segment.chunks(profile.segment_max) {
            state.push(connection, side, Segment::Bytes(part.to_vec()));
        }
        Ok(count)
    }

    pub(super) fn finish(&self, connection: u64, side: usize) {
        self.state().finish(connection, side);
    }

    pub(super) fn close(&self, connection: u64, side: usize) {
        self.state().close(connection, side);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
