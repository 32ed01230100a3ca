//! The sending side of a connection: responses put together as PDUs, sent in order.
//!
//! Invariants:
//! - PDUs leave in the order they were queued, each whole.
//! - A payload is sent from the buffer that holds it; only headers and digests are copied.
//! - A command's entry is reported as sent when its last byte was taken, and not before: that is
//!   what bounds the queue here by the depth of the submission queue.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, Bytes},
    net::Stream,
    units::Time,
};
use corebay_nvme::{
    digest::crc32c,
    spec::{
        completion::CompletionEntry,
        tcp::{
            C2hData, CapsuleResp, DIGEST_BYTES, FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS,
            FatalErrorStatus, IcResp, TERM_DATA_BYTES_MAX, TermReq,
        },
    },
};
use zerocopy::IntoBytes;

use super::{Counters, link::Negotiated};
use crate::queue::EntryId;

/// PDUs gathered into one call.
const ITEMS_PER_CALL: usize = 128;

/// Slices of one call: header, padding, payload, digest for each PDU.
const SLICES_PER_CALL: usize = ITEMS_PER_CALL * 4;

/// Calls for one connection in one turn, so that a long queue does not keep the others waiting.
const CALLS_PER_TURN: usize = 4;

const PADDING: [u8; 128] = [0; 128];

/// A header with its digest, ready to be sent.
pub(super) type Head = HeadBytes;

/// The bytes of a common PDU's header and digest.
#[derive(Debug, Default)]
pub(super) struct HeadBytes {
    bytes: ArrayVec<u8, 32>,
}

impl HeadBytes {
    /// A PDU without data whose fields are `header`, with flags, lengths and digest filled in.
    pub fn pdu(header: &[u8], negotiated: &Negotiated) -> Self {
        let mut head = Self::default();
        head.set(header);
        if negotiated.header_digest {
            let plen = header.len() + DIGEST_BYTES;
            head.bytes[1] |= corebay_nvme::spec::tcp::FLAG_HDGST;
            head.bytes[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
            head.add_digest();
        }
        head
    }

    fn set(&mut self, header: &[u8]) {
        self.bytes
            .try_extend_from_slice(header)
            .expect("a common header has 24 bytes");
    }

    fn add_digest(&mut self) {
        let digest = crc32c(&self.bytes).to_le_bytes();
        self.bytes
            .try_extend_from_slice(&digest)
            .expect("24 bytes and 4 more");
    }
}

/// One PDU to be sent.
#[derive(Debug)]
pub(super) struct Item {
    head: Head,
    /// A header longer than common ones (connection set-up and termination).
    long_head: Option<Box<[u8]>>,
    padding: usize,
    payload: Option<Buffer>,
    digest: Option<[u8; DIGEST_BYTES]>,
    /// The command that is done with once this was sent.
    entry: Option<EntryId>,
}

impl Item {
    /// A PDU that is only a header.
    pub fn header(head: Head, entry: Option<EntryId>) -> Self {
        Self {
            head,
            long_head: None,
            padding: 0,
            payload: None,
            digest: None,
            entry,
        }
    }

    /// CapsuleResp.
    pub fn completion(
        completion: CompletionEntry,
        entry: EntryId,
        negotiated: &Negotiated,
    ) -> Self {
        let capsule = CapsuleResp::new(completion);
        Self::header(Head::pdu(capsule.as_bytes(), negotiated), Some(entry))
    }

    /// C2HData with all of a command's data; with `success` it stands for the completion too.
    pub fn data(
        cid: u16,
        payload: Buffer,
        success: bool,
        entry: Option<EntryId>,
        negotiated: &Negotiated,
    ) -> Self {
        let len = payload.len() as u32;
        let success = if success { FLAG_C2H_SUCCESS } else { 0 };
        let mut pdu = C2hData::new(cid, 0, len, FLAG_C2H_LAST_PDU | success);
        pdu.common = pdu.common.with_digests(
            negotiated.header_digest,
            negotiated.data_digest,
            negotiated.alignment,
        );
        let mut head = Head::default();
        head.set(pdu.as_bytes());
        if negotiated.header_digest {
            head.add_digest();
        }
        let padding = usize::from(pdu.common.pdo) - head.bytes.len();
        let digest = negotiated
            .data_digest
            .then(|| crc32c(&payload.bytes()).to_le_bytes());
        Self {
            head,
            long_head: None,
            padding,
            payload: Some(payload),
            digest,
            entry,
        }
    }

    /// ICResp.
    pub fn connection_response(response: &IcResp) -> Self {
        let long_head = Some(response.as_bytes().into());
        Self {
            long_head,
            ..Self::header(Head::default(), None)
        }
    }

    /// C2HTermReq, with the header that was wrong.
    pub fn termination(fes: FatalErrorStatus, fei: u32, header: &[u8]) -> Self {
        let header = &header[..header.len().min(TERM_DATA_BYTES_MAX)];
        let request = TermReq::from_controller(fes, fei, header.len());
        let bytes = [request.as_bytes(), header].concat();
        Self {
            long_head: Some(bytes.into()),
            ..Self::header(Head::default(), None)
        }
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum::<usize>()
            + self.payload.as_ref().map_or(0, Buffer::len)
    }

    /// The parts other than the payload: before it (header, padding) and behind it (digest).
    fn parts(&self) -> [&[u8]; 3] {
        let head = self.long_head.as_deref().unwrap_or(&self.head.bytes);
        let digest = self.digest.as_ref().map_or(&[][..], |digest| &digest[..]);
        [head, &PADDING[..self.padding], digest]
    }
}

/// The PDUs that wait to be sent.
#[derive(Debug)]
pub(super) struct Sender {
    items: VecDeque<Item>,
    /// Bytes of the first item that were taken already.
    taken: usize,
    /// The stream took bytes when it was last asked.
    pub writable: bool,
    /// Since when something waits because the stream took no more.
    pub blocked_since: Option<Time>,
    /// Bytes that the stream has taken.
    pub sent_bytes: u64,
}

impl Default for Sender {
    fn default() -> Self {
        Self {
            items: VecDeque::with_capacity(32),
            taken: 0,
            writable: true,
            blocked_since: None,
            sent_bytes: 0,
        }
    }
}

impl Sender {
    pub fn push(&mut self, item: Item) {
        self.items.push_back(item);
    }

    pub fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.taken = 0;
        self.blocked_since = None;
    }

    /// Sends as much as the stream takes. Returns how many calls that were.
    pub fn send<S: Stream>(
        &mut self,
        stream: &mut S,
        now: Time,
        counters: &Counters,
        sent: &mut impl FnMut(EntryId),
    ) -> io::Result<usize> {
        let mut calls = 0;
        while self.writable && self.has_items() {
            if calls == CALLS_PER_TURN {
                break;
            }
            calls += 1;
            counters.sends.set(counters.sends.get() + 1);
            match self.call(stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.took(bytes, sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        if !self.has_items() {
            self.blocked_since = None;
        } else if !self.writable && self.blocked_since.is_none() {
            self.blocked_since = Some(now);
        }
        Ok(calls)
    }

    fn call<S: Stream>(&self, stream: &mut S) -> io::Result<usize> {
        let guards: ArrayVec<Option<Bytes<'_>>, ITEMS_PER_CALL> = self
            .items
            .iter()
            .take(ITEMS_PER_CALL)
            .map(|item| item.payload.as_ref().map(Buffer::bytes))
            .collect();
        let mut slices: ArrayVec<IoSlice<'_>, SLICES_PER_CALL> = ArrayVec::new();
        let mut skip = self.taken;
        for (item, payload) in self.items.iter().zip(&guards) {
            let [head, padding, digest] = item.parts();
            let payload = payload.as_deref().unwrap_or(&[]);
            for part in [head, padding, payload, digest] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices.push(IoSlice::new(&part[skipped..]));
                }
            }
        }
        stream.send(&slices)
    }

    fn took(&mut self, bytes: usize, sent: &mut impl FnMut(EntryId)) {
        self.taken += bytes;
        self.sent_bytes += bytes as u64;
        while let Some(first) = self.items.front() {
            let len = first.len();
            if self.taken < len {
                break;
            }
            self.taken -= len;
            if let Some(Item {
                entry: Some(entry), ..
            }) = self.items.pop_front()
            {
                sent(entry);
            }
        }
    }
}
