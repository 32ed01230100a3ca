//! The receiving side of a connection: takes PDUs apart, however the stream is cut.
//!
//! Invariants:
//! - A header is believed only after it was checked against what its type, the negotiation and the
//!   transfers under way allow; the first thing that is wrong terminates the connection with the
//!   specification's own error (NVMe/TCP 1.1, 3.5 and 3.6.2.4), before anything was done with it.
//! - While data that were asked for may arrive, no more than the next header is received ahead of
//!   them, so that they land in their buffer and nowhere else.
//! - Of each connection, memory for one PDU header and the staging buffer is all that is held here.

use std::{
    cell::Cell,
    io::{self, IoSliceMut},
    rc::Rc,
};

use corebay_core::{buffer::Buffer, net::Stream, units::Time};
use corebay_nvme::{
    digest::crc32c,
    spec::{
        command::SubmissionEntry,
        sgl::Sgl,
        status::Status,
        tcp::{
            CapsuleCmd, CommonHeader, DGST_DATA, DGST_HEADER, DIGEST_BYTES, FLAG_H2C_LAST_PDU,
            FatalErrorStatus as Fes, H2cData, HLEN_COMMON, HLEN_H2C_DATA, IcReq, IcResp, PDA_MAX,
            PFV, PduType, TermReq,
        },
    },
};
use tracing::info;
use zerocopy::FromBytes;

use super::{
    Counters, DigestPolicy, TcpOptions, TcpQueue,
    link::{Link, Negotiated},
    send::Item,
};
use crate::{
    environment::Environment,
    limits::IN_CAPSULE_BYTES_MAX,
    memory::Arriving,
    queue::{Announced, EntryId, QueueControl},
};

/// The bytes that are received at a time when no data are expected: a good many capsules.
const STAGING_BYTES: usize = 32 << 10;

/// The shortest header that a host sends once a connection is set up: no PDU is shorter, so as many
/// bytes may always be received before it is known what comes.
const SHORTEST_HEADER: usize = HLEN_H2C_DATA as usize;

/// In-capsule data of admin and fabrics commands (NVMe/TCP 1.1, 3.3.1.1), in bytes.
const ADMIN_IN_CAPSULE_BYTES: usize = 8192;

/// Receiving calls for one connection in one turn.
const CALLS_PER_TURN: usize = 8;

/// A fatal error: what it is, and what goes with that (a byte offset, a digest, or nothing).
struct Fatal {
    fes: Fes,
    fei: u32,
}

impl Fatal {
    fn field(offset: u32) -> Self {
        Self {
            fes: Fes::InvalidPduHeaderField,
            fei: offset,
        }
    }

    /// An error whose information is not an offset, or is none.
    fn of(fes: Fes, fei: u32) -> Self {
        Self { fes, fei }
    }
}

/// FEI of the errors that have none to give.
const NO_INFORMATION: u32 = 0;

/// Byte offsets of header fields, for FEI.
mod at {
    pub const PDU_TYPE: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    pub const PFV: u32 = 8;
    pub const CCCID: u32 = 8;
    pub const HPDA: u32 = 10;
    pub const TTAG: u32 = 10;
    pub const DGST: u32 = 11;
    pub const DATAL: u32 = 16;
}

/// What the data of a PDU belong to.
enum Target {
    /// A command capsule. While there is no buffer its data stay where they are staged.
    Capsule {
        sqe: SubmissionEntry,
        buffer: Option<Buffer>,
        arriving: Option<Arriving>,
    },
    /// A fetch, by its tag, and where in it.
    Fetch {
        tag: u16,
        offset: usize,
        buffer: Buffer,
    },
}

/// The data of a PDU that is being received.
struct Body {
    target: Target,
    /// Bytes between header and data that are skipped.
    padding: usize,
    len: usize,
    arrived: usize,
    digest: bool,
}

impl Body {
    /// The bytes of the digest behind the data.
    fn digest_bytes(&self) -> usize {
        if self.digest { DIGEST_BYTES } else { 0 }
    }

    /// Its data have no buffer yet.
    fn is_staged(&self) -> bool {
        matches!(self.target, Target::Capsule { buffer: None, .. })
    }
}

/// The receiving side of a connection.
pub(super) struct Receiver<E: Environment> {
    link: Rc<Link<E>>,
    queue: Option<Rc<TcpQueue<E>>>,
    options: TcpOptions,
    counters: Rc<Counters>,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    body: Option<Body>,
    waiting_for_memory: bool,
    may_have_more: bool,
}

impl<E: Environment> Receiver<E> {
    pub fn new(
        link: Rc<Link<E>>,
        queue: Rc<TcpQueue<E>>,
        options: TcpOptions,
        counters: Rc<Counters>,
    ) -> Self {
        link.set_stall_timeout(queue.core.limits.stall_timeout);
        Self {
            link,
            queue: Some(queue),
            options,
            counters,
            staging: vec![0; STAGING_BYTES].into(),
            start: 0,
            end: 0,
            body: None,
            waiting_for_memory: false,
            may_have_more: true,
        }
    }

    /// Bytes that the connection's former core had received but not looked at.
    pub fn preload(&mut self, unread: &[u8]) {
        self.staging[..unread.len()].copy_from_slice(unread);
        self.end = unread.len();
    }

    /// Takes those bytes back.
    pub fn take_unread(&mut self) -> Vec<u8> {
        let unread = self.staging[self.start..self.end].to_vec();
        self.start = self.end;
        unread
    }

    /// A capsule's data have no buffer yet; nothing more is received before they have.
    pub fn is_waiting_for_memory(&self) -> bool {
        self.waiting_for_memory
    }

    /// The stream was not drained when it was last received from.
    pub fn may_have_more(&self) -> bool {
        self.may_have_more
    }

    /// The connection is gone: lets go of what refers to it.
    pub fn end(&mut self) {
        if let Some(queue) = self.queue.take()
            && self.waiting_for_memory
        {
            queue.core.memory.leave_capsule_line(queue.key);
        }
        self.body = None;
    }

    /// Receives what is there, within bounds. Returns how many calls brought something.
    pub fn receive(&mut self, now: Time) -> usize {
        self.link.now.set(now);
        let mut calls = 0;
        while calls < CALLS_PER_TURN {
            self.take_apart(now);
            if self.is_drained() {
                self.may_have_more = false;
                break;
            }
            if self.link.is_gone() || self.waiting_for_memory {
                break;
            }
            self.counters.receives.set(self.counters.receives.get() + 1);
            let Some((room, received)) = self.call() else {
                break;
            };
            match received {
                Ok(0) => {
                    self.ended(None);
                    break;
                }
                Ok(bytes) => {
                    calls += 1;
                    self.may_have_more = true;
                    self.arrived(bytes);
                    if bytes < room {
                        // Very likely that was all; the next turn asks anyhow.
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.may_have_more = false;
                    break;
                }
                Err(error) => {
                    self.ended(Some(&error));
                    break;
                }
            }
        }
        self.take_apart(now);
        if self.waiting_for_memory {
            self.link.excuse(now);
        }
        calls
    }

    /// The queue drains, and nothing that it still has needs more from the host.
    fn is_drained(&self) -> bool {
        let draining = self.queue.as_ref().is_some_and(|queue| queue.is_draining());
        draining && !self.link.is_fetching() && self.body.is_none()
    }

    fn ended(&mut self, error: Option<&io::Error>) {
        self.may_have_more = false;
        if let Some(error) = error
            && let Some(queue) = &self.queue
            && !queue.is_closed()
        {
            info!(%error, "a connection broke");
        }
        self.link.fail(match error {
            None => "the host closed the connection",
            Some(_) => "the connection broke",
        });
    }

    /// One call: the rest of a body's data into its buffer, then headers into the staging buffer.
    /// How many bytes there was room for, and how many came.
    fn call(&mut self) -> Option<(usize, io::Result<usize>)> {
        self.make_room();
        let ahead = self.ahead();
        let Self {
            link,
            staging,
            body,
            end,
            ..
        } = self;
        let staged = &mut staging[*end..(*end + ahead).min(STAGING_BYTES)];
        let rest = body
            .as_mut()
            .filter(|body| body.padding == 0)
            .and_then(|body| {
                let (arrived, len) = (body.arrived, body.len);
                let buffer = match &mut body.target {
                    Target::Capsule { buffer, .. } => buffer.as_mut()?,
                    Target::Fetch { buffer, .. } => buffer,
                };
                (arrived < len).then(|| buffer.slice(arrived..len))
            });
        let room = staged.len() + rest.as_ref().map_or(0, Buffer::len);
        let received = match rest {
            Some(mut rest) => {
                let mut bytes = rest.bytes_mut();
                link.with_stream(|stream| {
                    stream.receive(&mut [IoSliceMut::new(&mut bytes), IoSliceMut::new(staged)])
                })
            }
            None => link.with_stream(|stream| stream.receive(&mut [IoSliceMut::new(staged)])),
        };
        received.map(|received| (room, received))
    }

    /// How many bytes may go into the staging buffer.
    fn ahead(&self) -> usize {
        if self.link.is_terminating() {
            return STAGING_BYTES;
        }
        let staged = self.end - self.start;
        if !self.link.is_negotiated() {
            return STAGING_BYTES - self.end;
        }
        if !self.link.is_fetching() {
            return STAGING_BYTES - self.end;
        }
        // Data that were asked for may come next: not a byte of them may land here.
        let wanted = match &self.body {
            Some(body) if body.padding > 0 => body.padding,
            Some(body) if body.is_staged() => body.len + body.digest_bytes() + SHORTEST_HEADER,
            Some(body) => body.digest_bytes() + SHORTEST_HEADER,
            None => self.header_len().unwrap_or(SHORTEST_HEADER),
        };
        wanted.saturating_sub(staged)
    }

    /// The bytes up to the end of the header that begins in the staging buffer, once known.
    fn header_len(&self) -> Option<usize> {
        let staged = &self.staging[self.start..self.end];
        let (common, _) = CommonHeader::read_from_prefix(staged).ok()?;
        let kind = common.kind()?;
        let digest = self.link.negotiated().header_digest && kind.may_have_header_digest();
        Some(usize::from(kind.hlen()) + if digest { DIGEST_BYTES } else { 0 })
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            // What is left is less than a header, or a capsule's data that have no buffer yet.
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Counts received bytes to the body they landed in, and the rest to the staging buffer.
    fn arrived(&mut self, bytes: usize) {
        if self.link.is_terminating() {
            // Nothing is believed any more; only the end of the stream matters.
            self.start = 0;
            self.end = 0;
            return;
        }
        let count = |counter: &Cell<u64>, bytes| counter.set(counter.get() + bytes as u64);
        count(&self.link.received_bytes, bytes);
        let mut bytes = bytes;
        let landing = |body: &&mut Body| body.padding == 0 && !body.is_staged();
        if let Some(body) = self.body.as_mut().filter(landing) {
            let landed = bytes.min(body.len - body.arrived);
            body.arrived += landed;
            bytes -= landed;
            if matches!(body.target, Target::Fetch { .. }) {
                count(&self.link.fetched_bytes, landed);
            }
        }
        self.end += bytes;
    }

    /// Takes apart what is in the staging buffer, PDU by PDU.
    fn take_apart(&mut self, now: Time) {
        loop {
            if self.link.is_gone() || self.link.is_terminating() {
                return;
            }
            let step = match self.body {
                Some(_) => self.body_step(),
                None => self.header_step(),
            };
            match step {
                Ok(true) if self.body.is_none() => self.link.pdu_complete(),
                Ok(true) => {}
                Ok(false) => {
                    if self.start == self.end && self.body.is_none() {
                        self.link.pdu_complete();
                    } else {
                        self.link.pdu_incomplete(now);
                    }
                    return;
                }
                Err(Fatal { fes, fei }) => {
                    let staged = &self.staging[self.start..self.end];
                    let header = &staged[..staged.len().min(self.header_len().unwrap_or(8))];
                    self.link.terminate(fes, fei, header, now);
                    self.body = None;
                    self.start = 0;
                    self.end = 0;
                    return;
                }
            }
        }
    }

    /// Takes the next header, if all of it is there.
    fn header_step(&mut self) -> Result<bool, Fatal> {
        let staged = &self.staging[self.start..self.end];
        let Ok((common, _)) = CommonHeader::read_from_prefix(staged) else {
            return Ok(false);
        };
        let kind = self.check_kind(&common)?;
        let negotiated = self.link.negotiated();
        let header_digest = negotiated.header_digest && kind.may_have_header_digest();
        if common.hlen != kind.hlen() {
            return Err(Fatal::field(at::HLEN));
        }
        let hlen = usize::from(common.hlen);
        let head = hlen + if header_digest { DIGEST_BYTES } else { 0 };
        check_common(&common, kind, head, &negotiated)?;
        if staged.len() < head {
            return Ok(false);
        }
        if header_digest && staged[hlen..head] != crc32c(&staged[..hlen]).to_le_bytes() {
            let mut received = [0; DIGEST_BYTES];
            received.copy_from_slice(&staged[hlen..head]);
            let received = u32::from_le_bytes(received);
            return Err(Fatal::of(Fes::HeaderDigestError, received));
        }
        // Read where it lies: HLEN was checked, so each of these has its bytes.
        let header = &staged[..hlen];
        let wrong_length = || Fatal::field(at::PLEN);
        match kind {
            PduType::IcReq => {
                let request = IcReq::read_from_bytes(header).map_err(|_| wrong_length())?;
                self.connection_request(&request)?;
            }
            PduType::CapsuleCmd => {
                let capsule = CapsuleCmd::read_from_bytes(header).map_err(|_| wrong_length())?;
                return self.capsule(&capsule.ccsqe, &common, head);
            }
            PduType::H2cData => {
                let pdu = H2cData::read_from_bytes(header).map_err(|_| wrong_length())?;
                return self.data(&pdu, &common, head);
            }
            _ => {
                let request = TermReq::read_from_bytes(header).map_err(|_| wrong_length())?;
                self.terminated(&request);
            }
        }
        self.start += head;
        Ok(true)
    }

    fn check_kind(&self, common: &CommonHeader) -> Result<PduType, Fatal> {
        let kind = common.kind().filter(|kind| kind.is_from_host());
        let kind = kind.ok_or_else(|| Fatal::field(at::PDU_TYPE))?;
        let expected = match kind {
            PduType::IcReq => !self.link.is_negotiated(),
            PduType::H2cTermReq => true,
            _ => self.link.is_negotiated(),
        };
        if !expected {
            return Err(Fatal::of(Fes::PduSequenceError, NO_INFORMATION));
        }
        Ok(kind)
    }

    fn connection_request(&mut self, request: &IcReq) -> Result<(), Fatal> {
        if request.pfv.get() != PFV {
            return Err(Fatal::of(Fes::UnsupportedParameter, at::PFV));
        }
        if request.hpda > PDA_MAX {
            return Err(Fatal::of(Fes::UnsupportedParameter, at::HPDA));
        }
        let decide = |policy: DigestPolicy, bit: u8| match (policy, request.dgst & bit != 0) {
            (DigestPolicy::Off, _) => Ok(false),
            (DigestPolicy::Require, false) => Err(Fatal::of(Fes::UnsupportedParameter, at::DGST)),
            (_, asked) => Ok(asked),
        };
        let header_digest = decide(self.options.header_digest, DGST_HEADER)?;
        let data_digest = decide(self.options.data_digest, DGST_DATA)?;
        self.link.set_negotiated(Negotiated {
            header_digest,
            data_digest,
            alignment: (u32::from(request.hpda) + 1) * 4,
            r2ts_max: request.maxr2t.get().saturating_add(1),
        });
        let digests =
            if header_digest { DGST_HEADER } else { 0 } | if data_digest { DGST_DATA } else { 0 };
        let response = IcResp::new(0, digests, self.options.h2c_data_bytes_max);
        self.link.push(Item::connection_response(&response));
        Ok(())
    }

    /// The host terminates the connection.
    fn terminated(&mut self, request: &TermReq) {
        let (fes, fei) = (request.fes.get(), request.fei.get());
        info!(fes, fei, "the host terminated the connection");
        self.link.fail("the host terminated the connection");
    }

    fn capsule(
        &mut self,
        sqe: &SubmissionEntry,
        common: &CommonHeader,
        head: usize,
    ) -> Result<bool, Fatal> {
        let negotiated = self.link.negotiated();
        let (padding, len) = data_place(common, head, negotiated.data_digest)?;
        if len == 0 {
            self.start += head;
            self.accept(sqe, announced(sqe, None, 0));
            return Ok(true);
        }
        if len > self.in_capsule_max() {
            return Err(Fatal::field(at::PLEN));
        }
        self.start += head;
        let target = Target::Capsule {
            sqe: *sqe,
            buffer: None,
            arriving: None,
        };
        let digest = negotiated.data_digest;
        self.body = Some(Body {
            target,
            padding,
            len,
            arrived: 0,
            digest,
        });
        Ok(true)
    }

    fn in_capsule_max(&self) -> usize {
        let Some(queue) = &self.queue else { return 0 };
        match queue.binding() {
            Some(binding) if binding.qid != 0 => queue.core.limits.in_capsule_bytes,
            _ => ADMIN_IN_CAPSULE_BYTES,
        }
    }

    fn data(&mut self, pdu: &H2cData, common: &CommonHeader, head: usize) -> Result<bool, Fatal> {
        let negotiated = self.link.negotiated();
        let (padding, len) = data_place(common, head, negotiated.data_digest)?;
        if pdu.datal.get() > self.options.h2c_data_bytes_max {
            return Err(Fatal::of(Fes::LimitExceeded, NO_INFORMATION));
        }
        if len == 0 || pdu.datal.get() as usize != len {
            return Err(Fatal::field(if len == 0 { at::DATAL } else { at::PLEN }));
        }
        let (tag, offset) = (pdu.ttag.get(), pdu.datao.get() as usize);
        let cid = self.link.with_fetch(tag, |fetch| fetch.cid);
        let cid = cid.ok_or_else(|| Fatal::field(at::TTAG))?;
        if cid != pdu.cccid.get() {
            return Err(Fatal::field(at::CCCID));
        }
        let buffer = self
            .link
            .with_fetch(tag, |fetch| fetch.place(offset, len))
            .flatten();
        let buffer =
            buffer.ok_or_else(|| Fatal::of(Fes::DataTransferOutOfRange, NO_INFORMATION))?;
        let is_last = self
            .link
            .with_fetch(tag, |fetch| fetch.is_last(offset, len));
        if common.flags & FLAG_H2C_LAST_PDU != 0 && is_last != Some(true) {
            // What is missing would never come. The reverse, a last PDU that does not say so, leaves
            // nothing open and is let pass.
            return Err(Fatal::field(at::FLAGS));
        }
        self.start += head;
        let target = Target::Fetch {
            tag,
            offset,
            buffer,
        };
        let digest = negotiated.data_digest;
        self.body = Some(Body {
            target,
            padding,
            len,
            arrived: 0,
            digest,
        });
        Ok(true)
    }

    /// Goes on with a body; true once it was complete.
    fn body_step(&mut self) -> Result<bool, Fatal> {
        let Some(body) = self.body.as_mut() else {
            return Ok(false);
        };
        let skipped = body.padding.min(self.end - self.start);
        body.padding -= skipped;
        self.start += skipped;
        if body.padding > 0 || !self.ensure_buffer() {
            return Ok(false);
        }
        self.copy_staged();
        let Some(body) = self.body.as_ref() else {
            return Ok(false);
        };
        let digest = body.digest_bytes();
        if body.arrived < body.len || self.end - self.start < digest {
            return Ok(false);
        }
        let received: [u8; DIGEST_BYTES] = {
            let mut bytes = [0; DIGEST_BYTES];
            bytes[..digest].copy_from_slice(&self.staging[self.start..self.start + digest]);
            bytes
        };
        self.start += digest;
        let Some(body) = self.body.take() else {
            return Ok(false);
        };
        self.complete(body, received)?;
        Ok(true)
    }

    /// Sees that the body has a buffer to land in. Data of a capsule that find no room among those that
    /// arrive are staged until all are there.
    fn ensure_buffer(&mut self) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        let staged = self.end - self.start;
        let Some(Body {
            target: Target::Capsule {
                buffer, arriving, ..
            },
            len,
            digest,
            ..
        }) = self.body.as_mut()
        else {
            return true;
        };
        if buffer.is_some() {
            return true;
        }
        let memory = &queue.core.memory;
        let complete = staged >= *len + if *digest { DIGEST_BYTES } else { 0 };
        if complete {
            *buffer = memory.complete_capsule(queue.key, queue.capsule_share(), *len);
            self.waiting_for_memory = buffer.is_none();
        } else if let Some((room, place)) = memory.begin_capsule(queue.capsule_share(), *len) {
            *buffer = Some(room);
            *arriving = Some(place);
        }
        buffer.is_some()
    }

    /// Moves what was received ahead of its time to where it belongs. Data that were asked for never
    /// are (see [`ahead`](Self::ahead)), except those whose fetch began while they were on their way.
    fn copy_staged(&mut self) {
        let Some(body) = self.body.as_mut() else {
            return;
        };
        let count = (self.end - self.start).min(body.len - body.arrived);
        if count == 0 {
            return;
        }
        let staged = &self.staging[self.start..self.start + count];
        let (buffer, counter) = match &mut body.target {
            Target::Capsule {
                buffer: Some(buffer),
                ..
            } => (buffer, &self.counters.in_capsule_bytes_copied),
            Target::Capsule { buffer: None, .. } => return,
            Target::Fetch { buffer, .. } => {
                let fetched = &self.link.fetched_bytes;
                fetched.set(fetched.get() + count as u64);
                (buffer, &self.counters.fetched_bytes_copied)
            }
        };
        let mut part = buffer.slice(body.arrived..body.arrived + count);
        part.bytes_mut().copy_from_slice(staged);
        counter.set(counter.get() + count as u64);
        body.arrived += count;
        self.start += count;
    }

    fn complete(&mut self, body: Body, received: [u8; DIGEST_BYTES]) -> Result<(), Fatal> {
        let matches =
            |buffer: &Buffer| !body.digest || crc32c(&buffer.bytes()).to_le_bytes() == received;
        match body.target {
            Target::Capsule {
                sqe,
                buffer,
                arriving,
            } => {
                drop(arriving);
                let intact = buffer.as_ref().is_none_or(matches);
                let announced = if intact {
                    announced(&sqe, buffer, body.len)
                } else {
                    Err(Status::TRANSIENT_TRANSPORT_ERROR)
                };
                self.accept(&sqe, announced);
                Ok(())
            }
            Target::Fetch {
                tag,
                offset,
                buffer,
            } => {
                let intact = matches(&buffer);
                drop(buffer);
                let all = self.link.with_fetch(tag, |fetch| {
                    fetch.digest_failed |= !intact;
                    fetch.arrived(offset, body.len)
                });
                if all != Some(true) {
                    self.link.ask(tag);
                    return Ok(());
                }
                let Some(fetch) = self.link.end_fetch(tag) else {
                    return Ok(());
                };
                let failed = fetch.digest_failed;
                drop(fetch);
                if let Some(queue) = &self.queue {
                    let status = if failed {
                        Status::TRANSIENT_TRANSPORT_ERROR
                    } else {
                        Status::SUCCESS
                    };
                    queue.data_arrived(EntryId(tag), status);
                }
                Ok(())
            }
        }
    }

    fn accept(&self, sqe: &SubmissionEntry, announced: Result<Announced, Status>) {
        if let Some(queue) = &self.queue
            && !queue.is_closed()
            && queue.accept(sqe, announced).is_err()
        {
            let queue = queue.clone();
            queue.close("it sent more commands than its queue is deep");
        }
    }
}

/// What a capsule's data descriptor announces, checked against what came with it.
fn announced(
    sqe: &SubmissionEntry,
    buffer: Option<Buffer>,
    received: usize,
) -> Result<Announced, Status> {
    match (sqe.sgl_parsed(), buffer) {
        (Sgl::OffsetBlock { offset, len }, in_capsule) => {
            if offset != 0 {
                return Err(Status::SGL_OFFSET_INVALID.with_dnr());
            }
            if len as usize != received {
                return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
            }
            Ok(Announced {
                len: received,
                in_capsule,
            })
        }
        (_, Some(_)) => Err(Status::SGL_TYPE_INVALID.with_dnr()),
        (Sgl::TransportDataBlock { len }, None) => Ok(Announced {
            len: len as usize,
            in_capsule: None,
        }),
        // Commands without data leave the descriptor as it is, often zero.
        (Sgl::DataBlock { len: 0, .. }, None) => Ok(Announced::default()),
        _ => Err(Status::SGL_TYPE_INVALID.with_dnr()),
    }
}

/// Checks flags, PDO and PLEN of a header whose type and HLEN are right.
fn check_common(
    common: &CommonHeader,
    kind: PduType,
    head: usize,
    negotiated: &Negotiated,
) -> Result<(), Fatal> {
    let plen = common.plen.get() as usize;
    if plen < head {
        return Err(Fatal::field(at::PLEN));
    }
    match kind {
        PduType::IcReq => {
            if plen != head {
                return Err(Fatal::field(at::PLEN));
            }
        }
        PduType::H2cTermReq => {
            if plen > head + corebay_nvme::spec::tcp::TERM_DATA_BYTES_MAX {
                return Err(Fatal::field(at::PLEN));
            }
        }
        _ => {
            let with_data = plen > head;
            if common.has_header_digest() != negotiated.header_digest
                || with_data && common.has_data_digest() != negotiated.data_digest
            {
                return Err(Fatal::field(at::FLAGS));
            }
        }
    }
    Ok(())
}

/// Where a PDU's data are: bytes of padding in front of them, and their length.
fn data_place(common: &CommonHeader, head: usize, digest: bool) -> Result<(usize, usize), Fatal> {
    let plen = common.plen.get() as usize;
    if plen == head {
        return Ok((0, 0));
    }
    let pdo = usize::from(common.pdo);
    if pdo < head || pdo > plen || pdo % 4 != 0 {
        return Err(Fatal::field(at::PDO));
    }
    let digest = if digest { DIGEST_BYTES } else { 0 };
    let len = (plen - pdo)
        .checked_sub(digest)
        .ok_or_else(|| Fatal::field(at::PLEN))?;
    Ok((pdo - head, len))
}

const _: () = assert!(SHORTEST_HEADER >= HLEN_COMMON as usize);

// Staged data of a capsule leave room for what follows them.
const _: () = assert!(
    IN_CAPSULE_BYTES_MAX + DIGEST_BYTES + SHORTEST_HEADER <= STAGING_BYTES
        && ADMIN_IN_CAPSULE_BYTES <= IN_CAPSULE_BYTES_MAX
);
