//! The bytes of PDUs: headers with their digests and padding, built for the wire, and the checks of
//! those that arrive.

use corebay_core::disk::SEGMENTS_MAX;
use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::IntoBytes;

use super::{error::Violation, transmit::Format};
use crate::digest::crc32c;
use crate::spec::{
    command::SubmissionEntry,
    tcp::{
        CapsuleCmd, CommonHeader, DGST_DATA, DGST_HEADER, DIGEST_BYTES, FLAG_DDGST, FLAG_HDGST,
        FatalErrorStatus, H2cData, HLEN_C2H_DATA, HLEN_CAPSULE_CMD, HLEN_COMMON, HLEN_MAX, PDA_MAX,
        PduType,
    },
};

/// The most bytes from a PDU's start to its data that this host makes: the header, its digest and
/// padding.
pub(super) const HEAD_BYTES_MAX: usize =
    (HLEN_CAPSULE_CMD as usize + DIGEST_BYTES).next_multiple_of((PDA_MAX as usize + 1) * 4);

/// The longest PDU that is not data: a termination request with 128 bytes of a header.
pub(super) const PDU_BYTES_MAX: u32 = 24 + 128;

const _: () = assert!(SEGMENTS_MAX < 256 && HLEN_MAX <= HEAD_BYTES_MAX);

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C over each PDU's header.
    pub header: bool,
    /// CRC32C over each PDU's data.
    pub data: bool,
}

impl Digests {
    /// As in DGST of an ICReq or ICResp.
    pub(super) fn to_wire(self) -> u8 {
        let header = if self.header { DGST_HEADER } else { 0 };
        let data = if self.data { DGST_DATA } else { 0 };
        header | data
    }

    /// From DGST of an ICResp.
    pub(super) fn from_wire(dgst: u8) -> Self {
        Self {
            header: dgst & DGST_HEADER != 0,
            data: dgst & DGST_DATA != 0,
        }
    }
}

/// A running CRC32C.
pub(super) struct Crc(Digest);

impl Crc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what came since the last time, as it travels.
    pub(super) fn finish(&mut self) -> [u8; DIGEST_BYTES] {
        digest_bytes(self.0.finalize_reset())
    }
}

impl std::fmt::Debug for Crc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc")
    }
}

/// The digest of `bytes`, as it travels.
pub(super) fn digest_of(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    crc32c(bytes).to_le_bytes()
}

#[allow(clippy::cast_possible_truncation, reason = "the CRC has 32 bits")]
fn digest_bytes(crc: u64) -> [u8; DIGEST_BYTES] {
    (crc as u32).to_le_bytes()
}

/// What a PDU begins with: header, digest, and padding up to its data.
#[derive(Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    used: usize,
}

impl Head {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn new(header: &[u8], common: &CommonHeader) -> Self {
        let mut head = Self {
            bytes: [0; HEAD_BYTES_MAX],
            used: header.len(),
        };
        head.bytes[..header.len()].copy_from_slice(header);
        if common.has_header_digest() {
            let end = head.used + DIGEST_BYTES;
            head.bytes[head.used..end].copy_from_slice(&digest_of(header));
            head.used = end;
        }
        head.used = head.used.max(usize::from(common.pdo));
        head
    }
}

/// The head of a command capsule with `data_bytes` of in-capsule data.
pub(super) fn capsule(sqe: &SubmissionEntry, data_bytes: u32, format: &Format) -> Head {
    let mut pdu = CapsuleCmd::new(*sqe, data_bytes);
    let digests = format.digests;
    pdu.common = pdu
        .common
        .with_digests(digests.header, digests.data, format.alignment_bytes);
    Head::new(pdu.as_bytes(), &pdu.common)
}

/// The head of an H2CData PDU.
pub(super) fn h2c_data(mut pdu: H2cData, format: &Format) -> Head {
    let digests = format.digests;
    pdu.common = pdu
        .common
        .with_digests(digests.header, digests.data, format.alignment_bytes);
    Head::new(pdu.as_bytes(), &pdu.common)
}

/// Where a PDU from a controller lies, after its common header has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: PduType,
    pub(super) flags: u8,
    /// Bytes of the header, without the digest.
    pub(super) header_bytes: usize,
    /// A digest follows the header.
    pub(super) header_digest: bool,
    /// Bytes from the PDU's start to its data; for a PDU without data, all its bytes.
    pub(super) data_at: usize,
    /// Bytes of data.
    pub(super) data_bytes: u32,
    /// A digest follows the data.
    pub(super) data_digest: bool,
}

fn invalid(fei: u32, what: &'static str) -> Violation {
    Violation {
        fes: FatalErrorStatus::InvalidPduHeaderField,
        fei,
        what,
    }
}

/// Checks what a PDU says about its own shape.
pub(super) fn frame(common: &CommonHeader, digests: Digests) -> Result<Frame, Violation> {
    let kind = common
        .kind()
        .filter(|kind| !kind.is_from_host())
        .ok_or_else(|| invalid(0, "no PDU of this type comes from a controller"))?;
    if common.hlen != kind.hlen() {
        return Err(invalid(2, "HLEN is not that of the PDU's type"));
    }
    let header_digest = digests.header && kind.may_have_header_digest();
    if common.has_header_digest() != header_digest {
        return Err(invalid(1, "HDGSTF is not as negotiated"));
    }
    let digest_bytes = if header_digest { DIGEST_BYTES } else { 0 };
    let header_bytes = usize::from(common.hlen);
    let head = header_bytes + digest_bytes;
    let plen = common.plen.get();
    let frame = Frame {
        kind,
        flags: common.flags,
        header_bytes,
        header_digest,
        data_at: head,
        data_bytes: 0,
        data_digest: false,
    };
    match kind {
        PduType::C2hData => data_frame(common, digests, frame),
        PduType::C2hTermReq => {
            if plen < u32::from(common.hlen) || plen > PDU_BYTES_MAX {
                return Err(invalid(4, "PLEN is not that of a termination request"));
            }
            Ok(Frame {
                data_at: plen as usize,
                ..frame
            })
        }
        _ if plen as usize != head => Err(invalid(4, "PLEN is not that of the PDU's type")),
        _ => Ok(frame),
    }
}

fn data_frame(common: &CommonHeader, digests: Digests, frame: Frame) -> Result<Frame, Violation> {
    let data_at = usize::from(common.pdo);
    if data_at < frame.data_at || !data_at.is_multiple_of(4) {
        return Err(invalid(3, "PDO is not where data can begin"));
    }
    if common.has_data_digest() != digests.data {
        return Err(invalid(1, "DDGSTF is not as negotiated"));
    }
    let digest_bytes = if digests.data { DIGEST_BYTES } else { 0 };
    let overhead = u32::from(common.pdo) + digest_bytes as u32;
    let data_bytes = common
        .plen
        .get()
        .checked_sub(overhead)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| invalid(4, "PLEN leaves no data"))?;
    Ok(Frame {
        data_at,
        data_bytes,
        data_digest: digests.data,
        ..frame
    })
}

/// The common header at the start of `bytes`, which has at least eight.
pub(super) fn common(bytes: &[u8]) -> CommonHeader {
    let bytes = &bytes[..usize::from(HLEN_COMMON)];
    zerocopy::FromBytes::read_from_bytes(bytes).expect("the slice has the header's size")
}

const _: () = assert!(FLAG_HDGST != FLAG_DDGST && HLEN_C2H_DATA == 24);
