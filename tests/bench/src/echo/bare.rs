//! Owns the bare echo, the limit: a spinning loop of nonblocking `recv` and `send` that answers each
//! request with as many bytes as the target would, and does nothing else.
//!
//! There are two of them. The gathering echo answers all requests that arrived together with one
//! `sendmsg`, each payload from memory of its own: by these calls, and without copying payload, these
//! bytes cannot be served faster. The single echo makes a call for each reply, as simple servers do.
//!
//! Invariants:
//! - The same bytes cross the connection as with the target; the replies' headers are right, so that
//!   the host does the same work, and were put together beforehand.
//! - Only where data are fetched does it look at headers: there it must tell commands from data.

use std::{
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    ops::Range,
    time::{Duration, Instant},
};

use corebay_nvme::spec::{
    completion::CompletionEntry,
    tcp::{C2hData, CapsuleResp, CommonHeader, FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS, PduType, R2t},
};
use zerocopy::{FromBytes, IntoBytes};

use super::server::Meter;
use crate::load::{C2H_BYTES, CAPSULE_BYTES, H2C_BYTES, Load, R2T_BYTES, RESPONSE_BYTES};

/// Bytes received at a time.
pub const INCOMING_BYTES: usize = 128 << 10;
/// Pieces of one sending call.
const SLICES_MAX: usize = 256;
/// Idle turns that are timed to know what one costs.
const TIMED_TURNS: u32 = 2000;

/// Replies that were put together beforehand, given out in turn. Each one's payload is memory of its
/// own, as the buffers of a target are.
struct Replies {
    bytes: Vec<u8>,
    /// Where in `bytes` the pieces of all replies are, in the order of the stream.
    pieces: Vec<Range<usize>>,
    /// The piece that is sent next, and how much of it was.
    next: usize,
    taken: usize,
    /// Bytes to be sent.
    owed: usize,
}

impl Replies {
    fn new(load: &Load) -> Self {
        let (mut heads, mut pieces) = (Vec::new(), Vec::new());
        // The payloads come first, page by page; behind them the headers.
        let payloads = if load.write {
            0
        } else {
            load.depth * load.bytes
        };
        for cid in 0..load.depth as u16 {
            if !load.write {
                let success = if load.flow_control {
                    0
                } else {
                    FLAG_C2H_SUCCESS
                };
                let flags = FLAG_C2H_LAST_PDU | success;
                let header = C2hData::new(cid, 0, load.bytes as u32, flags);
                let (at, payload) = (payloads + heads.len(), usize::from(cid) * load.bytes);
                heads.extend_from_slice(header.as_bytes());
                pieces.push(at..at + C2H_BYTES);
                pieces.push(payload..payload + load.bytes);
            }
            if load.write || load.flow_control {
                let capsule = CapsuleResp::new(CompletionEntry::success(cid));
                let at = payloads + heads.len();
                heads.extend_from_slice(capsule.as_bytes());
                pieces.push(at..at + RESPONSE_BYTES);
            }
        }
        if load.write {
            // Responses alone lie one behind the other: no need for more than one piece.
            pieces.clear();
            pieces.push(0..heads.len());
        }
        // Not zero: to the kernel, pages that were never written to are all one page, which is
        // always in the cache.
        let mut bytes = vec![0x5a; payloads];
        bytes.extend_from_slice(&heads);
        Self {
            bytes,
            pieces,
            next: 0,
            taken: 0,
            owed: 0,
        }
    }

    /// Sends what is owed with one call, or of it no more than `most` bytes. Returns how much the
    /// socket took.
    fn send(&mut self, mut stream: &TcpStream, most: usize) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (mut count, mut left) = (0, self.owed.min(most));
        let (mut next, mut taken) = (self.next, self.taken);
        while left > 0 && count < SLICES_MAX {
            let piece = &self.bytes[self.pieces[next].clone()][taken..];
            slices[count] = IoSlice::new(&piece[..left.min(piece.len())]);
            left -= slices[count].len();
            count += 1;
            (next, taken) = ((next + 1) % self.pieces.len(), 0);
        }
        let sent = or_nothing(stream.write_vectored(&slices[..count]))?;
        self.owed -= sent;
        self.taken += sent;
        while self.taken >= self.pieces[self.next].len() {
            self.taken -= self.pieces[self.next].len();
            self.next = (self.next + 1) % self.pieces.len();
        }
        Ok(sent)
    }

    /// Sends what is owed with a call for each reply, as much as the socket takes.
    fn send_each(&mut self, stream: &TcpStream, load: &Load) -> io::Result<()> {
        while self.owed > 0 {
            // What is left of the reply that is being sent.
            let first = (self.owed - 1) % load.reply_bytes() + 1;
            if self.send(stream, first)? == 0 {
                break;
            }
        }
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
pub struct Answers<'a> {
    stream: &'a TcpStream,
    load: Load,
    gather: bool,
    replies: Replies,
    /// Bytes of a request that has not arrived as a whole.
    partial: usize,
}

impl<'a> Answers<'a> {
    /// Answers on a connection that does not block; gathers replies, or sends each by itself.
    pub fn new(stream: &'a TcpStream, load: &Load, gather: bool) -> Self {
        Self {
            stream,
            load: *load,
            gather,
            replies: Replies::new(load),
            partial: 0,
        }
    }

    /// One turn: receives, and answers. How many bytes came, if any, and if a gathering call was
    /// made.
    pub fn turn(&mut self, incoming: &mut [u8]) -> io::Result<(Option<usize>, bool)> {
        let received = receive(self.stream, incoming)?;
        if let Some(bytes) = received {
            self.partial += bytes;
            let requests = self.partial / self.load.capsule_bytes();
            self.replies.owed += requests * self.load.reply_bytes();
            self.partial %= self.load.capsule_bytes();
        }
        let owing = self.replies.owed > 0;
        match (owing, self.gather) {
            (false, _) => {}
            (true, true) => {
                self.replies.send(self.stream, usize::MAX)?;
            }
            (true, false) => self.replies.send_each(self.stream, &self.load)?,
        }
        Ok((received, owing && self.gather))
    }
}

fn answer(
    stream: &TcpStream,
    load: &Load,
    gather: bool,
    incoming: &mut [u8],
    meter: &mut Meter,
) -> io::Result<()> {
    let mut answers = Answers::new(stream, load, gather);
    while meter.is_going() {
        let (received, sent) = answers.turn(incoming)?;
        if received.is_none() {
            meter.idle_turn();
        }
        meter.sends += u64::from(sent);
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
            meter.sends += 1;
        }
    }
    Ok(())
}
