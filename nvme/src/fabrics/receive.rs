//! The receiving half of a connection: PDUs out of a byte stream, however it is cut.
//!
//! Headers, and the data of small reads, come by way of a staging buffer, so that one receive
//! brings many completions. The data of large reads lands in the command's own buffers.
//!
//! Invariants:
//! - Everything that comes is an allegation: lengths, identifiers and offsets are checked against
//!   the command table before a byte is stored. What does not fit ends the connection.
//! - What a controller can make this host store or queue is bounded by the commands in flight:
//!   each byte of a read comes once, in order, and each byte of a write is asked for once.
//! - A receiver that has given a [`Fault`] is not used again.

use std::io::{self, IoSliceMut};

use arrayvec::ArrayVec;
use corebay_core::net::Stream;
use zerocopy::FromBytes;

use super::{
    error::{Error, Violation},
    table::{Completion, Id, Table, Way},
    transmit::{GRANTS_MAX, Grant, Transmitter},
    wire::{self, Crc, Digests, Frame},
};
use crate::spec::{
    status::Status,
    tcp::{
        C2hData, CapsuleResp, DIGEST_BYTES, FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS, FatalErrorStatus,
        HLEN_COMMON, IcResp, MAXH2CDATA_MIN, PDA_MAX, PFV, PduType, R2t, TERM_DATA_BYTES_MAX,
        TermReq,
    },
};

/// The staging buffer: at least the longest head of a PDU (PDO has eight bits).
const STAGING_BYTES: usize = 32 << 10;

/// Where the reads in flight are this large on average, their data is not staged.
const DIRECT_BYTES_MIN: u64 = 16 << 10;

/// What is received beyond the data of a large read: a response and the header after it.
const LOOK_AHEAD_BYTES: usize = 64;

/// The receives of one turn, so that one connection cannot keep the others waiting.
const RECEIVES_PER_TURN_MAX: usize = 16;

/// Why a connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The controller is told why, with the header of the offending PDU: [`Receiver::offending`].
    Violation(Violation),
    /// There is nobody to tell.
    Lost(Error),
}

/// What one turn of receiving came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    /// Receives that brought something.
    pub(super) receives: usize,
    /// There was nothing more.
    pub(super) drained: bool,
}

/// Data on its way into a command's buffers.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    id: Id,
    /// Where in the command's data the next byte belongs.
    offset: u32,
    /// The bytes that are still to come in this PDU.
    left: u32,
    /// The PDU ends with a digest.
    digest: bool,
    /// The PDU is the command's successful completion.
    success: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The next byte begins a PDU.
    Header,
    /// The next byte is data.
    Data(Incoming),
    /// The next byte begins the digest of data.
    Digest(Incoming),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiver {
    staging: Box<[u8]>,
    /// What is staged and not yet parsed.
    start: usize,
    end: usize,
    phase: Phase,
    /// The digests asked for, then those agreed on.
    digests: Digests,
    /// The controller has answered the ICReq.
    established: bool,
    crc: Crc,
}

impl Receiver {
    /// For a connection that asks for `digests`.
    pub(super) fn new(digests: Digests) -> Self {
        Self {
            staging: vec![0; STAGING_BYTES].into(),
            start: 0,
            end: 0,
            phase: Phase::Header,
            digests,
            established: false,
            crc: Crc::new(),
        }
    }

    /// True once the controller has answered the ICReq.
    pub(super) fn is_established(&self) -> bool {
        self.established
    }

    /// The header of the PDU that was a violation, as far as a termination request takes it.
    pub(super) fn offending(&self) -> ArrayVec<u8, TERM_DATA_BYTES_MAX> {
        let staged = self.staging[self.start..self.end].iter();
        staged.copied().take(TERM_DATA_BYTES_MAX).collect()
    }

    /// Takes what has arrived.
    pub(super) fn receive<S: Stream>(
        &mut self,
        stream: &mut S,
        table: &mut Table,
        transmitter: &mut Transmitter,
    ) -> Result<Received, Fault> {
        let mut received = Received::default();
        while received.receives < RECEIVES_PER_TURN_MAX {
            let full = match self.fill(stream, table) {
                Ok(full) => full,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    received.drained = true;
                    break;
                }
                Err(error) => return Err(Fault::Lost(error.into())),
            };
            received.receives += 1;
            self.parse(table, transmitter)?;
            if !full {
                // Probably nothing is left; the next turn finds out.
                break;
            }
        }
        Ok(received)
    }

    /// Receives once, into the place where the next bytes belong; true where all of it was filled.
    fn fill<S: Stream>(&mut self, stream: &mut S, table: &mut Table) -> io::Result<bool> {
        let window = if table.mean_read_bytes() >= DIRECT_BYTES_MIN {
            LOOK_AHEAD_BYTES
        } else {
            STAGING_BYTES
        };
        if let Phase::Data(incoming) = &mut self.phase
            && let Some(slot) = table.active(incoming.id)
            && !slot.abandoned
        {
            debug_assert_eq!(self.start, self.end, "what is staged is parsed first");
            let (segment, at) = slot.locate(incoming.offset);
            let mut into = slot.segments[segment].bytes_mut();
            let fits = (into.len() - at).min(incoming.left as usize);
            let into = &mut into[at..at + fits];
            let ahead = if fits == incoming.left as usize {
                window
            } else {
                0
            };
            let count = end_of_stream(if ahead == 0 {
                stream.receive(&mut [IoSliceMut::new(into)])?
            } else {
                stream.receive(&mut [
                    IoSliceMut::new(into),
                    IoSliceMut::new(&mut self.staging[..ahead]),
                ])?
            })?;
            let landed = count.min(fits);
            if incoming.digest {
                self.crc.update(&into[..landed]);
            }
            let landed_bytes = u32::try_from(landed).expect("at most what is left");
            incoming.offset += landed_bytes;
            incoming.left -= landed_bytes;
            self.start = 0;
            self.end = count - landed;
            return Ok(count == fits + ahead);
        }
        if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // A header that is longer than the look-ahead still has to fit.
        let limit = if self.end < window {
            window
        } else {
            STAGING_BYTES
        };
        let into = &mut self.staging[self.end..limit];
        let room = into.len();
        let count = end_of_stream(stream.receive(&mut [IoSliceMut::new(into)])?)?;
        self.end += count;
        Ok(count == room)
    }

    /// Takes everything from the staging buffer that is there in whole.
    fn parse(&mut self, table: &mut Table, transmitter: &mut Transmitter) -> Result<(), Fault> {
        loop {
            let carry_on = match self.phase {
                Phase::Header => self.parse_header(table, transmitter)?,
                Phase::Data(incoming) => self.parse_data(incoming, table),
                Phase::Digest(incoming) => self.parse_digest(incoming, table),
            };
            if !carry_on {
                return Ok(());
            }
        }
    }

    /// Takes a PDU up to its data; false where it is not there in whole.
    fn parse_header(
        &mut self,
        table: &mut Table,
        transmitter: &mut Transmitter,
    ) -> Result<bool, Fault> {
        let staged = &self.staging[self.start..self.end];
        if staged.len() < usize::from(HLEN_COMMON) {
            return Ok(false);
        }
        // Digests are agreed on by the ICResp, which has none.
        let digests = if self.established {
            self.digests
        } else {
            Digests::default()
        };
        let frame = wire::frame(&wire::common(staged), digests)?;
        if staged.len() < frame.data_at {
            return Ok(false);
        }
        let header = &staged[..frame.header_bytes];
        if frame.header_digest {
            let at = frame.header_bytes;
            let digest = &staged[at..at + DIGEST_BYTES];
            if wire::digest_of(header) != digest {
                let fei = u32::from_le_bytes(digest.try_into().expect("four bytes"));
                return Err(violation(
                    FatalErrorStatus::HeaderDigestError,
                    fei,
                    "the header digest does not match",
                ));
            }
        }
        let phase = match frame.kind {
            PduType::C2hTermReq => {
                let pdu = typed::<TermReq>(header);
                return Err(Fault::Lost(Error::Terminated {
                    fes: pdu.fes.get(),
                    fei: pdu.fei.get(),
                }));
            }
            PduType::IcResp if !self.established => {
                self.digests = take_ic_resp(&typed(header), self.digests, transmitter)?;
                self.established = true;
                Phase::Header
            }
            _ if !self.established || frame.kind == PduType::IcResp => {
                return Err(violation(
                    FatalErrorStatus::PduSequenceError,
                    0,
                    "ICResp is the first PDU, and comes once",
                ));
            }
            PduType::C2hData => Phase::Data(begin_data(&typed(header), &frame, table)?),
            PduType::R2t => {
                take_r2t(&typed(header), table, transmitter)?;
                Phase::Header
            }
            _ => {
                take_response(&typed(header), table)?;
                Phase::Header
            }
        };
        self.phase = phase;
        self.start += frame.data_at;
        Ok(true)
    }

    /// Takes the data that is staged; false where more is to come.
    fn parse_data(&mut self, mut incoming: Incoming, table: &mut Table) -> bool {
        let count = (self.end - self.start).min(incoming.left as usize);
        if count > 0 {
            let staged = &self.staging[self.start..self.start + count];
            // The task that would look at the data may be gone: then nobody may write there.
            if let Some(slot) = table.active(incoming.id)
                && !slot.abandoned
            {
                slot.copy_in(incoming.offset, staged);
            }
            if incoming.digest {
                self.crc.update(staged);
            }
            let count_bytes = u32::try_from(count).expect("at most what is left");
            incoming.offset += count_bytes;
            incoming.left -= count_bytes;
            self.start += count;
        }
        self.phase = Phase::Data(incoming);
        if incoming.left > 0 {
            return false;
        }
        if incoming.digest {
            self.phase = Phase::Digest(incoming);
        } else {
            self.end_data(incoming, table);
        }
        true
    }

    /// Checks the digest of the data; false where it is not there in whole.
    fn parse_digest(&mut self, incoming: Incoming, table: &mut Table) -> bool {
        let staged = &self.staging[self.start..self.end];
        let Some(digest) = staged.first_chunk::<DIGEST_BYTES>() else {
            return false;
        };
        let matches = *digest == self.crc.finish();
        self.start += DIGEST_BYTES;
        if !matches && let Some(slot) = table.active(incoming.id) {
            slot.digest_failed = true;
        }
        self.end_data(incoming, table);
        true
    }

    fn end_data(&mut self, incoming: Incoming, table: &mut Table) {
        self.phase = Phase::Header;
        let Some(slot) = table.active(incoming.id) else {
            return;
        };
        slot.received = incoming.offset;
        if !incoming.success {
            return;
        }
        let outcome = if slot.digest_failed {
            Err(Error::DataDigest)
        } else {
            Ok(Completion {
                status: Status::SUCCESS,
                result: 0,
                received: slot.received,
            })
        };
        table.complete(incoming.id, outcome);
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

fn violation(fes: FatalErrorStatus, fei: u32, what: &'static str) -> Fault {
    Fault::Violation(Violation { fes, fei, what })
}

fn end_of_stream(count: usize) -> io::Result<usize> {
    if count == 0 {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(count)
    }
}

/// The header as its type; its length is its type's HLEN, as [`wire::frame`] has checked.
fn typed<T: FromBytes>(header: &[u8]) -> T {
    T::read_from_bytes(header).expect("HLEN is the size of the header's type")
}

/// Takes what the controller answers to the ICReq; gives the digests agreed on.
fn take_ic_resp(
    pdu: &IcResp,
    asked: Digests,
    transmitter: &mut Transmitter,
) -> Result<Digests, Fault> {
    let unsupported = FatalErrorStatus::UnsupportedParameter;
    let invalid = FatalErrorStatus::InvalidPduHeaderField;
    if pdu.pfv.get() != PFV {
        return Err(violation(unsupported, 8, "PFV is not 0"));
    }
    if pdu.cpda > PDA_MAX {
        return Err(violation(invalid, 10, "CPDA is more than 31"));
    }
    let agreed = Digests::from_wire(pdu.dgst);
    if (agreed.header && !asked.header) || (agreed.data && !asked.data) {
        return Err(violation(invalid, 11, "a digest was enabled unasked"));
    }
    let h2c_bytes_max = pdu.maxh2cdata.get();
    if h2c_bytes_max < MAXH2CDATA_MIN {
        return Err(violation(invalid, 12, "MAXH2CDATA is less than 4096"));
    }
    transmitter.format.digests = agreed;
    transmitter.format.alignment_bytes = (u32::from(pdu.cpda) + 1) * 4;
    // PDUs of whole dwords keep the data of those that follow aligned.
    transmitter.format.h2c_bytes_max = h2c_bytes_max & !3;
    Ok(agreed)
}

fn begin_data(pdu: &C2hData, frame: &Frame, table: &mut Table) -> Result<Incoming, Fault> {
    let invalid = FatalErrorStatus::InvalidPduHeaderField;
    let out_of_range = FatalErrorStatus::DataTransferOutOfRange;
    let (id, slot) = match table.find(pdu.cccid.get()) {
        Some(id) => (id, table.active(id).expect("found in flight")),
        None => return Err(violation(invalid, 8, "data for no command in flight")),
    };
    let (offset, bytes) = (pdu.datao.get(), pdu.datal.get());
    if slot.way != Way::In || !slot.on_wire {
        return Err(violation(
            FatalErrorStatus::PduSequenceError,
            0,
            "data for a command that reads none",
        ));
    }
    if bytes != frame.data_bytes {
        return Err(violation(invalid, 16, "DATAL contradicts PLEN"));
    }
    if offset
        .checked_add(bytes)
        .is_none_or(|end| end > slot.data_bytes)
    {
        return Err(violation(out_of_range, 12, "data beyond the command's"));
    }
    if offset != slot.received {
        return Err(violation(out_of_range, 12, "data out of order"));
    }
    let success = frame.flags & FLAG_C2H_SUCCESS != 0;
    if success && frame.flags & FLAG_C2H_LAST_PDU == 0 {
        return Err(violation(invalid, 1, "SUCCESS without LAST_PDU"));
    }
    Ok(Incoming {
        id,
        offset,
        left: bytes,
        digest: frame.data_digest,
        success,
    })
}

fn take_r2t(pdu: &R2t, table: &mut Table, transmitter: &mut Transmitter) -> Result<(), Fault> {
    let invalid = FatalErrorStatus::InvalidPduHeaderField;
    let out_of_range = FatalErrorStatus::DataTransferOutOfRange;
    let (id, slot) = match table.find(pdu.cccid.get()) {
        Some(id) => (id, table.active(id).expect("found in flight")),
        None => return Err(violation(invalid, 8, "R2T for no command in flight")),
    };
    if slot.way != Way::Out || slot.in_capsule || !slot.on_wire {
        return Err(violation(
            FatalErrorStatus::PduSequenceError,
            0,
            "R2T for a command that has no data to send",
        ));
    }
    let (offset, bytes) = (pdu.r2to.get(), pdu.r2tl.get());
    if bytes == 0
        || offset
            .checked_add(bytes)
            .is_none_or(|end| end > slot.data_bytes)
    {
        return Err(violation(out_of_range, 12, "R2T beyond the command's data"));
    }
    // A controller asks for each byte once; this bounds what it can make this host send.
    if bytes > slot.data_bytes - slot.granted {
        return Err(violation(out_of_range, 16, "R2T for data asked for before"));
    }
    if slot.grants_open == GRANTS_MAX {
        return Err(violation(
            FatalErrorStatus::LimitExceeded,
            0,
            "more R2Ts than MAXR2T allows",
        ));
    }
    slot.granted += bytes;
    slot.grants_open += 1;
    let ttag = pdu.ttag.get();
    transmitter.push_grant(Grant {
        id,
        ttag,
        offset,
        bytes,
    });
    Ok(())
}

fn take_response(pdu: &CapsuleResp, table: &mut Table) -> Result<(), Fault> {
    let cqe = &pdu.rccqe;
    let sequence = FatalErrorStatus::PduSequenceError;
    let (id, slot) = match table.find(cqe.cid.get()) {
        Some(id) => (id, table.active(id).expect("found in flight")),
        None => return Err(violation(sequence, 0, "response for no command in flight")),
    };
    if !slot.on_wire {
        return Err(violation(sequence, 0, "response before its command"));
    }
    let completion = Completion {
        status: cqe.status(),
        result: cqe.result(),
        received: slot.received,
    };
    let outcome = if slot.digest_failed && completion.status.is_success() {
        Err(Error::DataDigest)
    } else {
        Ok(completion)
    };
    table.complete(id, outcome);
    Ok(())
}
