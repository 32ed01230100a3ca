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
    buffer::{Buffer, Frozen},
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

const PADDING: [u8; 255] = [0; 255];

/// The bytes of a common PDU's header and digest.
const HEAD_BYTES_MAX: usize = 24 + DIGEST_BYTES;

/// A header with its digest, ready to be sent.
#[derive(Debug)]
pub(super) enum Head {
    /// Of a common PDU.
    Common(ArrayVec<u8, HEAD_BYTES_MAX>),
    /// Longer than common ones (connection set-up and termination).
    Long(Box<[u8]>),
}

impl Head {
    /// A PDU without data whose fields are `header`, with flags, lengths and digest filled in.
    pub fn pdu(header: &[u8], negotiated: &Negotiated) -> Self {
        if !negotiated.header_digest {
            return Self::common(header, false);
        }
        let mut fields = [0; HEAD_BYTES_MAX - DIGEST_BYTES];
        let fields = &mut fields[..header.len()];
        fields.copy_from_slice(header);
        let plen = header.len() + DIGEST_BYTES;
        fields[1] |= corebay_nvme::spec::tcp::FLAG_HDGST;
        fields[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        Self::common(fields, true)
    }

    /// A header with all its fields, to be followed by its digest or not.
    fn common(header: &[u8], digest: bool) -> Self {
        let fits = "a common header has 24 bytes";
        let mut bytes = ArrayVec::new();
        bytes.try_extend_from_slice(header).expect(fits);
        if digest {
            let digest = crc32c(header).to_le_bytes();
            bytes.try_extend_from_slice(&digest).expect(fits);
        }
        Self::Common(bytes)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Common(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

/// One PDU to be sent.
#[derive(Debug)]
pub(super) struct Item {
    head: Head,
    padding: u8,
    payload: Option<Frozen>,
    digest: Option<[u8; DIGEST_BYTES]>,
    /// The command that is done with once this was sent.
    entry: Option<EntryId>,
}

impl Item {
    /// A PDU that is only a header.
    pub fn header(head: Head, entry: Option<EntryId>) -> Self {
        Self {
            head,
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
        let head = Head::common(pdu.as_bytes(), negotiated.header_digest);
        let padding = usize::from(pdu.common.pdo) - head.bytes().len();
        let payload = payload.freeze();
        let digest = negotiated
            .data_digest
            .then(|| crc32c(&payload).to_le_bytes());
        Self {
            head,
            padding: u8::try_from(padding).expect("PDO has 8 bits"),
            payload: Some(payload),
            digest,
            entry,
        }
    }

    /// ICResp.
    pub fn connection_response(response: &IcResp) -> Self {
        Self::header(Head::Long(response.as_bytes().into()), None)
    }

    /// C2HTermReq, with the header that was wrong.
    pub fn termination(fes: FatalErrorStatus, fei: u32, header: &[u8]) -> Self {
        let header = &header[..header.len().min(TERM_DATA_BYTES_MAX)];
        let request = TermReq::from_controller(fes, fei, header.len());
        let bytes = [request.as_bytes(), header].concat();
        Self::header(Head::Long(bytes.into()), None)
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Header, padding, payload, digest.
    fn parts(&self) -> [&[u8]; 4] {
        [
            self.head.bytes(),
            &PADDING[..usize::from(self.padding)],
            self.payload.as_deref().unwrap_or(&[]),
            self.digest.as_ref().map_or(&[], |digest| &digest[..]),
        ]
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
        let mut slices: ArrayVec<IoSlice<'_>, SLICES_PER_CALL> = ArrayVec::new();
        let mut skip = self.taken;
        for item in self.items.iter().take(ITEMS_PER_CALL) {
            for part in item.parts() {
                if part.len() > skip {
                    slices.push(IoSlice::new(&part[skip..]));
                    skip = 0;
                } else {
                    skip -= part.len();
                }
            }
        }
        stream.send(&slices)
    }

    fn took(&mut self, bytes: usize, sent: &mut impl FnMut(EntryId)) {
        self.taken += bytes;
        self.sent_bytes += bytes as u64;
        let mut done = 0;
        for item in &self.items {
            let len = item.len();
            if self.taken < len {
                break;
            }
            self.taken -= len;
            done += 1;
            if let Some(entry) = item.entry {
                sent(entry);
            }
        }
        self.items.drain(..done);
    }
}
