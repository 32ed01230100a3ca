//! The sending half of a connection: what waits to be sent, and the gathering of a turn's PDUs into
//! one vectored send, payloads straight from the commands' buffers.
//!
//! Invariants:
//! - Everything is bounded and preallocated: the waiting list by the commands and the R2Ts they may
//!   have open, the wire by [`HEADER_BYTES`] and [`PIECES_MAX`]. A large transfer is cut into PDUs
//!   only as they are sent.
//! - A PDU that has begun is sent to its end, or the connection fails.
//! - A payload on the wire holds its command's slot, so that the buffers outlive the send.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

use arrayvec::ArrayVec;
use corebay_core::{buffer::Bytes, disk::SEGMENTS_MAX, net::Stream};

use super::{
    table::{Id, Table},
    wire::{self, Crc, Digests, HEAD_BYTES_MAX},
};
use crate::spec::tcp::{DIGEST_BYTES, H2cData};

/// The R2Ts that one command may have open at a time.
pub(super) const GRANTS_MAX: u8 = 4;

/// Headers, digests and padding of one gathering.
const HEADER_BYTES: usize = 16 << 10;

/// The slices of one gathering.
const PIECES_MAX: usize = 128;

/// The sends of one turn, so that one connection cannot keep the others waiting.
const SENDS_PER_TURN_MAX: usize = 16;

/// A command capsule, or the rest of the data that an R2T asked for.
#[derive(Clone, Copy, Debug)]
enum Work {
    Capsule(Id),
    Grant(Grant),
}

/// Data that the controller asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) id: Id,
    pub(super) ttag: u16,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

/// A part of the current gathering.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// The next bytes of [`Wire::bytes`].
    Header { bytes: usize },
    /// A part of a command's segment.
    Payload {
        index: u16,
        segment: u8,
        at: u32,
        bytes: u32,
    },
}

/// How the controller wants to be sent to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) digests: Digests,
    /// The alignment of data in a PDU (CPDA).
    pub(super) alignment_bytes: u32,
    /// The most data of one H2CData PDU (MAXH2CDATA).
    pub(super) h2c_bytes_max: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Transmitter {
    waiting: VecDeque<Work>,
    wire: Wire,
    /// The stream takes nothing until it becomes writable.
    pub(super) blocked: bool,
    pub(super) format: Format,
    crc: Crc,
}

/// The current gathering.
#[derive(Debug)]
struct Wire {
    bytes: Box<[u8]>,
    bytes_used: usize,
    pieces: ArrayVec<Piece, PIECES_MAX>,
    /// The first piece that has not been sent, how much of it has, and where its bytes begin if it
    /// is a header.
    first: usize,
    first_sent: usize,
    first_header: usize,
}

impl Transmitter {
    /// For a queue of `depth` commands.
    pub(super) fn new(depth: u16) -> Self {
        let waiting = usize::from(depth) * (1 + usize::from(GRANTS_MAX));
        Self {
            waiting: VecDeque::with_capacity(waiting),
            wire: Wire {
                bytes: vec![0; HEADER_BYTES].into(),
                bytes_used: 0,
                pieces: ArrayVec::new(),
                first: 0,
                first_sent: 0,
                first_header: 0,
            },
            blocked: false,
            format: Format {
                digests: Digests::default(),
                alignment_bytes: 4,
                h2c_bytes_max: 4096,
            },
            crc: Crc::new(),
        }
    }

    /// Sends a command's capsule, after what waits already.
    pub(super) fn push_capsule(&mut self, id: Id) {
        self.waiting.push_back(Work::Capsule(id));
    }

    /// Answers an R2T, after what waits already. The caller has checked that the data lies within
    /// the command's, and that the command has no more than [`GRANTS_MAX`] open.
    pub(super) fn push_grant(&mut self, grant: Grant) {
        self.waiting.push_back(Work::Grant(grant));
    }

    /// Sends a PDU as it is, before what waits and after what is on the wire. False where the wire
    /// has no room for it.
    pub(super) fn push_raw(&mut self, pdu: &[u8]) -> bool {
        let room = self.wire.bytes.len() - self.wire.bytes_used;
        if pdu.len() > room || self.wire.pieces.is_full() {
            return false;
        }
        self.wire.header(pdu);
        true
    }

    /// True where there is nothing to send.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.wire.is_empty()
    }

    /// Forgets everything; true where the stream is between two PDUs, so that the peer can make
    /// sense of one that follows.
    pub(super) fn forget(&mut self) -> bool {
        let between_pdus = self.wire.is_empty();
        self.waiting.clear();
        self.wire.reset();
        between_pdus
    }

    /// Sends as much as the stream takes; returns how many sends that took.
    ///
    /// # Errors
    /// What ends the stream.
    pub(super) fn flush<S: Stream>(
        &mut self,
        stream: &mut S,
        table: &mut Table,
    ) -> io::Result<usize> {
        let mut sends = 0;
        while !self.blocked && sends < SENDS_PER_TURN_MAX {
            if self.wire.is_empty() {
                self.gather(table);
                if self.wire.is_empty() {
                    break;
                }
            }
            match self.wire.send(stream, table) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.wire.advance(sent, table),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) => return Err(error),
            }
            sends += 1;
        }
        Ok(sends)
    }

    /// Fills the empty wire with PDUs for what waits, in order.
    fn gather(&mut self, table: &mut Table) {
        self.wire.reset();
        while self.wire.has_room() {
            let Some(work) = self.waiting.pop_front() else {
                break;
            };
            match work {
                Work::Capsule(id) => self.gather_capsule(id, table),
                Work::Grant(grant) => {
                    if let Some(rest) = self.gather_h2c_data(grant, table) {
                        self.waiting.push_front(Work::Grant(rest));
                    }
                }
            }
        }
    }

    fn gather_capsule(&mut self, id: Id, table: &mut Table) {
        let format = self.format;
        // A command that was failed before it was sent has nothing to send.
        let Some(slot) = table.active(id) else { return };
        slot.on_wire = true;
        let data_bytes = if slot.in_capsule { slot.data_bytes } else { 0 };
        let head = wire::capsule(&slot.sqe, data_bytes, &format);
        self.wire.header(head.as_bytes());
        if data_bytes > 0 {
            self.gather_payload(id.index, 0, data_bytes, table);
        }
    }

    /// Cuts one PDU off the grant; gives back the rest, if there is one.
    fn gather_h2c_data(&mut self, grant: Grant, table: &mut Table) -> Option<Grant> {
        let Grant {
            id,
            ttag,
            offset,
            bytes,
        } = grant;
        let cid = table.cid(id);
        // A command that was completed early is owed no more data.
        let slot = table.active(id)?;
        let count = bytes.min(self.format.h2c_bytes_max);
        let last = count == bytes;
        if last {
            slot.grants_open -= 1;
        }
        let pdu = H2cData::new(cid, ttag, offset, count, last);
        let head = wire::h2c_data(pdu, &self.format);
        self.wire.header(head.as_bytes());
        self.gather_payload(id.index, offset, count, table);
        (!last).then_some(Grant {
            offset: offset + count,
            bytes: bytes - count,
            ..grant
        })
    }

    fn gather_payload(&mut self, index: u16, offset: u32, bytes: u32, table: &mut Table) {
        let digest = self.format.digests.data;
        let mut left = bytes as usize;
        let (mut segment, mut at) = table.slot(index).locate(offset);
        while left > 0 {
            let buffer = &table.slot(index).segments[segment];
            let count = left.min(buffer.len() - at);
            if digest {
                self.crc.update(&buffer.bytes()[at..at + count]);
            }
            self.wire.pieces.push(Piece::Payload {
                index,
                segment: u8::try_from(segment).expect("at most SEGMENTS_MAX"),
                at: u32::try_from(at).expect("within 2^32 bytes"),
                bytes: u32::try_from(count).expect("within 2^32 bytes"),
            });
            table.hold(index);
            left -= count;
            segment += 1;
            at = 0;
        }
        if digest {
            self.wire.header(&self.crc.finish());
        }
    }
}

impl Wire {
    fn is_empty(&self) -> bool {
        self.first == self.pieces.len()
    }

    fn has_room(&self) -> bool {
        // A header, a payload of the most segments, a digest.
        self.bytes.len() - self.bytes_used >= HEAD_BYTES_MAX + DIGEST_BYTES
            && self.pieces.remaining_capacity() >= SEGMENTS_MAX + 2
    }

    fn reset(&mut self) {
        self.bytes_used = 0;
        self.pieces.clear();
        self.first = 0;
        self.first_sent = 0;
        self.first_header = 0;
    }

    fn header(&mut self, bytes: &[u8]) {
        let end = self.bytes_used + bytes.len();
        self.bytes[self.bytes_used..end].copy_from_slice(bytes);
        self.bytes_used = end;
        match self.pieces.last_mut() {
            Some(Piece::Header { bytes: last }) => *last += bytes.len(),
            _ => self.pieces.push(Piece::Header { bytes: bytes.len() }),
        }
    }

    fn send<S: Stream>(&self, stream: &mut S, table: &Table) -> io::Result<usize> {
        let pieces = &self.pieces[self.first..];
        let guards: ArrayVec<Bytes<'_>, PIECES_MAX> = pieces
            .iter()
            .filter_map(|piece| match *piece {
                Piece::Header { .. } => None,
                Piece::Payload { index, segment, .. } => {
                    Some(table.slot(index).segments[usize::from(segment)].bytes())
                }
            })
            .collect();
        let mut guards = guards.iter();
        let mut header_at = self.first_header;
        let mut skip = self.first_sent;
        let slices: ArrayVec<IoSlice<'_>, PIECES_MAX> = pieces
            .iter()
            .map(|piece| {
                let whole = match *piece {
                    Piece::Header { bytes } => {
                        header_at += bytes;
                        &self.bytes[header_at - bytes..header_at]
                    }
                    Piece::Payload { at, bytes, .. } => {
                        let guard = guards.next().expect("one guard for each payload");
                        &guard[at as usize..(at + bytes) as usize]
                    }
                };
                IoSlice::new(&whole[std::mem::take(&mut skip)..])
            })
            .collect();
        stream.send(&slices)
    }

    fn advance(&mut self, sent: usize, table: &mut Table) {
        let mut left = sent;
        while left > 0 {
            let piece = *self.pieces.get(self.first).expect("sent what is there");
            let bytes = match piece {
                Piece::Header { bytes } => bytes,
                Piece::Payload { bytes, .. } => bytes as usize,
            };
            let rest = bytes - self.first_sent;
            if left < rest {
                self.first_sent += left;
                return;
            }
            left -= rest;
            self.first += 1;
            self.first_sent = 0;
            match piece {
                Piece::Header { bytes } => self.first_header += bytes,
                Piece::Payload { index, .. } => table.release(index),
            }
        }
        if self.is_empty() {
            self.reset();
        }
    }
}
