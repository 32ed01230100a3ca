//! Owns the bare echo, the limit: a spinning loop of nonblocking `recv` and `send` that answers each
//! request with as many bytes as the target would, and does nothing else.
//!
//! There are two of them. The gathering echo answers all requests that arrived together with one
//! `send`, from one piece of memory: nothing that serves these bytes by these calls can be faster.
//! The single echo makes one `send` for each reply, as a simple server does.
//!
//! Invariants:
//! - The same bytes cross the connection as with the target; the replies' headers are right, so that
//!   the host does the same work, and were put together beforehand.
//! - Only where data are fetched does it look at headers: there it must tell commands from data.

use std::{
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use corebay_nvme::spec::{
    completion::CompletionEntry,
    tcp::{C2hData, CapsuleResp, CommonHeader, FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS, PduType, R2t},
};
use zerocopy::{FromBytes, IntoBytes};

use super::server::Meter;
use crate::load::{CAPSULE_BYTES, H2C_BYTES, Load, R2T_BYTES, RESPONSE_BYTES};

/// Bytes received at a time.
const INCOMING_BYTES: usize = 128 << 10;
/// Idle turns that are timed to know what one costs.
const TIMED_TURNS: u32 = 2000;

/// Replies that were put together beforehand, given out in turn.
struct Replies {
    bytes: Vec<u8>,
    /// Where the next byte is taken from.
    at: usize,
    /// Bytes to be sent.
    owed: usize,
}

impl Replies {
    fn new(load: &Load) -> Self {
        let mut bytes = Vec::with_capacity(load.depth * load.reply_bytes());
        for cid in 0..load.depth as u16 {
            if !load.write {
                let success = if load.flow_control {
                    0
                } else {
                    FLAG_C2H_SUCCESS
                };
                let flags = FLAG_C2H_LAST_PDU | success;
                let header = C2hData::new(cid, 0, load.bytes as u32, flags);
                bytes.extend_from_slice(header.as_bytes());
                bytes.resize(bytes.len() + load.bytes, 0);
            }
            if load.write || load.flow_control {
                let capsule = CapsuleResp::new(CompletionEntry::success(cid));
                bytes.extend_from_slice(capsule.as_bytes());
            }
        }
        Self {
            bytes,
            at: 0,
            owed: 0,
        }
    }

    /// Sends what is owed with a call for each reply, as much as the socket takes.
    fn send_each(&mut self, mut stream: &TcpStream, reply_bytes: usize) -> io::Result<()> {
        while self.owed > 0 {
            let end = self.at - self.at % reply_bytes + reply_bytes;
            let sent = or_nothing(stream.write(&self.bytes[self.at..end]))?;
            if sent == 0 {
                break;
            }
            self.owed -= sent;
            self.at = (self.at + sent) % self.bytes.len();
        }
        Ok(())
    }

    /// Sends what is owed with one call, as much as the socket takes.
    fn send(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        let first = self.owed.min(self.bytes.len() - self.at);
        let head = &self.bytes[self.at..self.at + first];
        // Never more than all commands' replies are owed, so this is before `at`.
        let rest = &self.bytes[..self.owed - first];
        let sent = if rest.is_empty() {
            stream.write(head)
        } else {
            stream.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)])
        };
        let sent = or_nothing(sent)?;
        self.owed -= sent;
        self.at = (self.at + sent) % self.bytes.len();
        Ok(())
    }
}

fn or_nothing(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Receives; `None` where nothing has arrived. The end of the stream is an error.
fn receive(mut stream: &TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(into) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Answers one connection until the meter says stop.
pub fn serve(stream: &TcpStream, load: &Load, gather: bool, meter: &mut Meter) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let mut incoming = vec![0; INCOMING_BYTES];
    let served = if load.is_fetched() {
        fetch(stream, load, &mut incoming, meter)
    } else {
        answer(stream, load, gather, &mut incoming, meter)
    };
    meter.idle_turn_costs(idle_turn(stream, &mut incoming));
    served
}

/// The time that a turn takes in which nothing has arrived.
fn idle_turn(stream: &TcpStream, incoming: &mut [u8]) -> Duration {
    let start = Instant::now();
    for _ in 0..TIMED_TURNS {
        let _ = std::hint::black_box(receive(stream, incoming));
    }
    start.elapsed() / TIMED_TURNS
}

/// Requests of one size, each answered by a reply.
fn answer(
    stream: &TcpStream,
    load: &Load,
    gather: bool,
    incoming: &mut [u8],
    meter: &mut Meter,
) -> io::Result<()> {
    let mut replies = Replies::new(load);
    let mut partial = 0;
    while meter.is_going() {
        match receive(stream, incoming)? {
            Some(bytes) => {
                partial += bytes;
                replies.owed += partial / load.capsule_bytes() * load.reply_bytes();
                partial %= load.capsule_bytes();
            }
            None => meter.idle_turn(),
        }
        match (replies.owed, gather) {
            (0, _) => {}
            (_, true) => replies.send(stream)?,
            (_, false) => replies.send_each(stream, load.reply_bytes())?,
        }
    }
    Ok(())
}

/// Commands each answered by an R2T, and data each answered by a response.
fn fetch(
    stream: &TcpStream,
    load: &Load,
    incoming: &mut [u8],
    meter: &mut Meter,
) -> io::Result<()> {
    let responses = Replies::new(load).bytes;
    let r2ts: Vec<u8> = (0..load.depth as u16)
        .flat_map(|cid| {
            let r2t = R2t::new(cid, cid, 0, load.bytes as u32);
            r2t.as_bytes().to_vec()
        })
        .collect();
    let (mut next_r2t, mut next_response) = (0, 0);
    let (mut filled, mut payload, mut in_data) = (0, 0, false);
    let mut outgoing: Vec<u8> = Vec::with_capacity(2 * responses.len() + r2ts.len());
    while meter.is_going() {
        match receive(stream, &mut incoming[filled..])? {
            Some(bytes) => filled += bytes,
            None => meter.idle_turn(),
        }
        let mut at = 0;
        loop {
            let skipped = usize::min(payload, filled - at);
            payload -= skipped;
            at += skipped;
            if payload > 0 {
                break;
            }
            if std::mem::take(&mut in_data) {
                outgoing.extend_from_slice(&responses[next_response..][..RESPONSE_BYTES]);
                next_response = (next_response + RESPONSE_BYTES) % responses.len();
            }
            let Ok((common, _)) = CommonHeader::read_from_prefix(&incoming[at..filled]) else {
                break;
            };
            in_data = common.pdu_type == PduType::H2cData as u8;
            let header = if in_data { H2C_BYTES } else { CAPSULE_BYTES };
            if filled - at < header {
                in_data = false;
                break;
            }
            at += header;
            if in_data {
                payload = load.bytes;
            } else {
                outgoing.extend_from_slice(&r2ts[next_r2t..][..R2T_BYTES]);
                next_r2t = (next_r2t + R2T_BYTES) % r2ts.len();
            }
        }
        incoming.copy_within(at..filled, 0);
        filled -= at;
        if !outgoing.is_empty() {
            let sent = or_nothing((&mut &*stream).write(&outgoing))?;
            outgoing.drain(..sent);
        }
    }
    Ok(())
}
