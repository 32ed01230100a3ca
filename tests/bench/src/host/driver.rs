//! Owns loading one connection: a spinning nonblocking socket, capsules put together beforehand, as
//! many commands outstanding as the load says.
//!
//! Invariants:
//! - It does the same work whoever answers: it takes the replies' headers apart, notes each
//!   command's latency, and sends the next command in the place of the one completed.
//! - When it returns, no command is outstanding.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use corebay_nvme::spec::{
    command::{SubmissionEntry, nvm},
    sgl::SglDescriptor,
    tcp::{CapsuleCmd, CommonHeader, FLAG_C2H_SUCCESS, H2cData, PduType},
};
use hdrhistogram::Histogram;
use zerocopy::{FromBytes, IntoBytes};

use crate::load::{CAPSULE_BYTES, H2C_BYTES, LOADS, Load, RESPONSE_BYTES};

/// Bytes received at a time.
const INCOMING_BYTES: usize = 128 << 10;
/// Pieces of one sending call.
const SLICES_MAX: usize = 64;
/// Every header that a target sends has as many bytes.
const HEADER_BYTES: usize = RESPONSE_BYTES;
/// Turns between two looks at the clock while nothing arrives.
const TURNS_PER_LOOK: u32 = 64;
/// A load that makes no progress for this long has failed.
pub const STALL: Duration = Duration::from_secs(10);
/// Longer latencies count as this one.
const LATENCY_MAX_NANOS: u64 = 60_000_000_000;
/// Where the LBA stands in a command capsule.
const LBA_OFFSET: usize = 8 + std::mem::offset_of!(SubmissionEntry, cdw10);
/// Blocks that the load is spread over.
const BLOCKS: u64 = 1 << 26;

/// What a load came to.
pub struct Outcome {
    /// Commands completed while it was measured.
    pub ios: u64,
    /// How long that was.
    pub elapsed: Duration,
    /// Nanoseconds from a command's sending to its completion.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Commands a second.
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.elapsed.as_secs_f64()
    }

    /// The median latency in microseconds.
    pub fn p50_us(&self) -> f64 {
        self.latency.value_at_quantile(0.5) as f64 / 1e3
    }
}

/// Which of the prepared bytes a piece is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Capsules,
    Data,
}

/// Bytes that are to be sent.
#[derive(Clone, Copy)]
struct Piece {
    of: Of,
    start: usize,
    end: usize,
}

/// A loaded connection.
pub struct Driver {
    stream: TcpStream,
    load: Load,
    capsules: Vec<u8>,
    data: Vec<u8>,
    outgoing: VecDeque<Piece>,
    incoming: Box<[u8]>,
    filled: usize,
    /// Bytes of payload that are on their way, and whose command they complete.
    payload: usize,
    completes: Option<usize>,
    sent_at: Vec<Instant>,
    outstanding: usize,
    stopping: bool,
    completed: u64,
    latency: Histogram<u64>,
    random: u64,
}

impl Driver {
    /// Prepares the load on a connection of an I/O queue, for this namespace.
    pub fn new(stream: TcpStream, load: Load, nsid: u32) -> Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let (capsules, data) = (capsules(&load, nsid)?, fetched_data(&load)?);
        Ok(Self {
            stream,
            load,
            capsules,
            data,
            outgoing: VecDeque::with_capacity(2 * load.depth),
            incoming: vec![0; INCOMING_BYTES].into(),
            filled: 0,
            payload: 0,
            completes: None,
            sent_at: vec![Instant::now(); load.depth],
            outstanding: 0,
            stopping: false,
            completed: 0,
            latency: Histogram::new_with_max(LATENCY_MAX_NANOS, 3)?,
            random: 0x9E37_79B9_7F4A_7C15,
        })
    }

    /// Loads the connection; `measuring` is told when measuring begins and ends.
    pub fn run(
        mut self,
        warm_up: Duration,
        measure: Duration,
        mut measuring: impl FnMut(bool),
    ) -> Result<Outcome> {
        let start = self.start();
        let begin = self.until(start + warm_up)?;
        measuring(true);
        self.completed = 0;
        self.latency.reset();
        let end = self.until(begin + measure)?;
        measuring(false);
        let ios = self.completed;
        self.stopping = true;
        self.until_quiet()?;
        Ok(Outcome {
            ios,
            elapsed: end - begin,
            latency: self.latency,
        })
    }

    /// Puts the first commands together, as many as may be outstanding.
    pub fn start(&mut self) -> Instant {
        let now = Instant::now();
        for slot in 0..self.load.depth {
            self.issue(slot, now);
        }
        now
    }

    /// The commands completed so far.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    fn until(&mut self, deadline: Instant) -> Result<Instant> {
        let (mut last, mut before) = (Instant::now(), self.completed);
        loop {
            for _ in 0..TURNS_PER_LOOK {
                self.turn()?;
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(now);
            }
            if self.completed != before {
                (last, before) = (now, self.completed);
            }
            ensure!(now - last < STALL, "no command completed for {STALL:?}");
        }
    }

    fn until_quiet(&mut self) -> Result<()> {
        let deadline = Instant::now() + STALL;
        while self.outstanding > 0 {
            self.turn()?;
            ensure!(Instant::now() < deadline, "commands are left outstanding");
        }
        Ok(())
    }

    /// Receives, and sends what that led to; true where something had arrived.
    pub fn turn(&mut self) -> Result<bool> {
        let received = match self.stream.read(&mut self.incoming[self.filled..]) {
            Ok(0) => bail!("the target closed the connection"),
            Ok(bytes) => {
                self.filled += bytes;
                self.take_apart(Instant::now())?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => return Err(error).context("receive"),
        };
        if !self.outgoing.is_empty() {
            self.send()?;
        }
        Ok(received)
    }

    fn take_apart(&mut self, now: Instant) -> Result<()> {
        let mut at = 0;
        loop {
            let skipped = self.payload.min(self.filled - at);
            self.payload -= skipped;
            at += skipped;
            if self.payload > 0 {
                break;
            }
            if let Some(slot) = self.completes.take() {
                self.complete(slot, now);
            }
            if self.filled - at < HEADER_BYTES {
                break;
            }
            let mut header = [0; HEADER_BYTES];
            header.copy_from_slice(&self.incoming[at..at + HEADER_BYTES]);
            at += HEADER_BYTES;
            self.header(&header, now)?;
        }
        self.incoming.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn header(&mut self, header: &[u8; HEADER_BYTES], now: Instant) -> Result<()> {
        const RESPONSE: u8 = PduType::CapsuleResp as u8;
        const DATA: u8 = PduType::C2hData as u8;
        const R2T: u8 = PduType::R2t as u8;
        let two = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        match header[0] {
            RESPONSE => {
                ensure!(
                    two(22) >> 1 == 0,
                    "a command failed: status {:#x}",
                    two(22) >> 1
                );
                self.complete(usize::from(two(20)), now);
            }
            DATA => {
                let (common, _) = CommonHeader::read_from_prefix(header)
                    .ok()
                    .context("8 bytes")?;
                self.payload = common.plen.get() as usize - HEADER_BYTES;
                ensure!(self.payload == self.load.bytes, "not all data in one PDU");
                let success = common.flags & FLAG_C2H_SUCCESS != 0;
                self.completes = success.then(|| usize::from(two(8)));
            }
            R2T => {
                let four = |at: usize| u32::from(two(at)) | u32::from(two(at + 2)) << 16;
                let whole = four(12) == 0 && four(16) as usize == self.load.bytes;
                ensure!(whole, "an R2T does not ask for all data at once");
                self.send_data(usize::from(two(8)), two(10));
            }
            other => bail!("a PDU of type {other:#x} came"),
        }
        Ok(())
    }

    fn complete(&mut self, slot: usize, now: Instant) {
        let nanos = (now - self.sent_at[slot]).as_nanos();
        self.latency
            .saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.completed += 1;
        self.outstanding -= 1;
        if !self.stopping {
            self.issue(slot, now);
        }
    }

    fn issue(&mut self, slot: usize, now: Instant) {
        let len = self.load.capsule_bytes();
        let start = slot * len;
        // Xorshift: the pattern only has to be spread.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let lba = self.random % BLOCKS;
        let field = start + LBA_OFFSET;
        self.capsules[field..field + 8].copy_from_slice(&lba.to_le_bytes());
        self.sent_at[slot] = now;
        self.outstanding += 1;
        self.push(Of::Capsules, start, len);
    }

    fn send_data(&mut self, slot: usize, tag: u16) {
        let len = H2C_BYTES + self.load.bytes;
        let start = slot * len;
        self.data[start + 10..start + 12].copy_from_slice(&tag.to_le_bytes());
        self.push(Of::Data, start, len);
    }

    fn push(&mut self, of: Of, start: usize, len: usize) {
        let end = start + len;
        match self.outgoing.back_mut() {
            Some(last) if last.of == of && last.end == start => last.end = end,
            _ => self.outgoing.push_back(Piece { of, start, end }),
        }
    }

    fn send(&mut self) -> Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.outgoing) {
            let bytes = match piece.of {
                Of::Capsules => &self.capsules,
                Of::Data => &self.data,
            };
            *slice = IoSlice::new(&bytes[piece.start..piece.end]);
            count += 1;
        }
        let mut sent = match (&self.stream).write_vectored(&slices[..count]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("send"),
        };
        while let Some(first) = self.outgoing.front_mut() {
            let len = first.end - first.start;
            if sent < len {
                first.start += sent;
                break;
            }
            sent -= len;
            self.outgoing.pop_front();
        }
        Ok(())
    }
}

/// The command capsules, one for each command that may be outstanding, by command identifier.
fn capsules(load: &Load, nsid: u32) -> Result<Vec<u8>> {
    let len = u32::try_from(load.bytes)?;
    let in_capsule = load.capsule_bytes() - CAPSULE_BYTES;
    let (opcode, sgl) = match (load.write, in_capsule) {
        (false, _) => (nvm::READ, SglDescriptor::transport(len)),
        (true, 0) => (nvm::WRITE, SglDescriptor::transport(len)),
        (true, _) => (nvm::WRITE, SglDescriptor::offset_block(0, len)),
    };
    let mut bytes = Vec::new();
    for cid in 0..u16::try_from(load.depth)? {
        let mut entry = SubmissionEntry::new(opcode, nsid)
            .with_cid(cid)
            .with_sgl(sgl);
        entry.cdw12 = (len / 4096 - 1).into();
        let capsule = CapsuleCmd::new(entry, u32::try_from(in_capsule)?);
        bytes.extend_from_slice(capsule.as_bytes());
        bytes.extend((0..in_capsule).map(|at| at as u8));
    }
    Ok(bytes)
}

/// A command capsule that reads `bytes` from the start of a namespace.
pub fn read_capsule(bytes: usize, nsid: u32) -> Result<Vec<u8>> {
    let load = Load {
        bytes,
        depth: 1,
        ..LOADS[0]
    };
    capsules(&load, nsid)
}

/// The H2CData PDUs with their data, one for each command that may be outstanding.
fn fetched_data(load: &Load) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if load.is_fetched() {
        for cid in 0..u16::try_from(load.depth)? {
            let header = H2cData::new(cid, 0, 0, u32::try_from(load.bytes)?, true);
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend((0..load.bytes).map(|at| at as u8));
        }
    }
    Ok(bytes)
}
